-- Health of every Trimwheel kind that has a status, for Argo CD, which does not read kstatus.
--
-- Reads nothing but what all kinds share: observedGeneration and the conditions Ready, Reconciling and
-- Stalled; a PolicyRollout that waits for a person, or was paused by one, is Suspended.
-- Returns {status = Healthy | Progressing | Degraded | Suspended, message = a sentence}.

local health = { status = "Progressing", message = "waiting for the operator" }

local status = obj.status
if status == nil or status.conditions == nil then
  return health
end

-- The status speaks of an older spec (-1: of none).
if (status.observedGeneration or -1) < obj.metadata.generation then
  return health
end

local found = {}
for _, condition in ipairs(status.conditions) do
  found[condition.type] = condition
end

local function holds(kind)
  return found[kind] ~= nil and found[kind].status == "True"
end

local function answer(word, kind)
  local message = found[kind].message
  if message == nil or message == "" then
    message = found[kind].reason
  end
  return { status = word, message = message }
end

if holds("Stalled") then
  return answer("Degraded", "Stalled")
end
if holds("AwaitingApproval") then
  return answer("Suspended", "AwaitingApproval")
end
if holds("Paused") then
  return answer("Suspended", "Paused")
end
if holds("Reconciling") then
  return answer("Progressing", "Reconciling")
end
if holds("Ready") then
  -- Full depth is safe and correct, so a model in it is Healthy; the message says why it costs more.
  if holds("Degraded") then
    return answer("Healthy", "Degraded")
  end
  return answer("Healthy", "Ready")
end
if found["Ready"] ~= nil then
  return answer("Progressing", "Ready")
end
return health
