"""Every name that two parts must spell alike: group, kinds, labels, conditions, reasons, accounts.

Imported by all packages; holds constants only, each with the sentence that says what it means.
Metric names live in `trimwheel_api.metrics`.
"""

from __future__ import annotations

GROUP = "trimwheel.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
CATEGORY = "trimwheel"

# --- where things run -------------------------------------------------------------------------
RELEASE_NAMESPACE = "trimwheel-system"
"""Default namespace of the Helm release: operator, pipelines and TuningRun Jobs live here."""
OPERATOR_ACCOUNT = "trimwheel-operator"
PIPELINES_ACCOUNT = "trimwheel-pipelines"
"""The watch loop: raises alarms, starts TuningRuns, removes what the ledger has."""
TUNING_ACCOUNT = "trimwheel-tuning"
"""TuningRun Jobs: the only holder of verb `certify`."""
WORKER_ACCOUNT_SUFFIX = "-trimwheel-worker"
"""Workers of model `m` run as service account `m-trimwheel-worker` in the model's namespace."""
TUNING_CONFIG = "trimwheel-tuning"
"""The ConfigMap of the release from which TuningRun Jobs read where everything is."""
FIELD_MANAGER = "trimwheel-operator"
OPERATOR_LEASE = "trimwheel-operator"
"""The Lease in the release namespace that only the deciding operator holds."""
RELEASE_JOURNAL = "trimwheel"
"""PolicyJournal of the release itself: since when its admission policies are in force."""
SELF_TEST_PREFIX = "trimwheel-self-test-"
"""Objects of this name, followed by an admission policy's short name, are the operator's probes."""


def journal_name(namespace: str, model: str) -> str:
    """PolicyJournal of a model, in the release's namespace; a namespace holds no dot."""
    return f"{namespace}.{model}"


def service_account_user(namespace: str, account: str) -> str:
    """The username under which the API server sees a service account."""
    return f"system:serviceaccount:{namespace}:{account}"


def worker_account(model: str) -> str:
    """Service account, Role and RoleBinding name of a model's workers."""
    return f"{model}{WORKER_ACCOUNT_SUFFIX}"


# --- labels and annotations -------------------------------------------------------------------
LABEL_NAME = "app.kubernetes.io/name"
LABEL_INSTANCE = "app.kubernetes.io/instance"
LABEL_COMPONENT = "app.kubernetes.io/component"
"""operator, worker, pipelines or tuning."""
LABEL_PART_OF = "app.kubernetes.io/part-of"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
PART_OF = "trimwheel"
COMPONENT_OPERATOR = "operator"
COMPONENT_WORKER = "worker"
COMPONENT_PIPELINES = "pipelines"
COMPONENT_TUNING = "tuning"

LABEL_MODEL = f"{GROUP}/model"
LABEL_MODEL_NAMESPACE = f"{GROUP}/model-namespace"
"""Back-reference of a TuningRun Job, which runs in another namespace than its model."""
LABEL_TUNING_RUN = f"{GROUP}/tuning-run"
LABEL_MODEL_UID = f"{GROUP}/model-uid"
LABEL_TUNING_RUN_UID = f"{GROUP}/tuning-run-uid"
LABEL_DIGEST = f"{GROUP}/digest"
"""First 16 hex characters of a policy digest: a whole digest is too long for a label."""

ANNOTATION_EPOCH = f"{GROUP}/epoch"
ANNOTATION_STABLE = f"{GROUP}/stable-digest"
ANNOTATION_CANDIDATE = f"{GROUP}/candidate-digest"
ANNOTATION_SPEC_HASH = f"{GROUP}/spec-hash"
ANNOTATION_REFUSED = f"{GROUP}/refused"
"""On a worker's Lease: why it does not serve what the assignment asks; empty when it does."""
ANNOTATION_TRIPPED = f"{GROUP}/tripped"
"""On a worker's Lease: why it went back to stable by itself (Tripwire, LeaseExpired)."""
TRIPPED_BY_LEASE = "LeaseExpired"
"""It heard nothing for leaseSeconds: a partition or a dead operator, not the candidate's fault."""

LABEL_DIGEST_LENGTH = 16


def digest_label(digest: str) -> str:
    """`sha256:abcd...` -> its first 16 hex characters."""
    return digest.removeprefix("sha256:")[:LABEL_DIGEST_LENGTH]


# --- verbs of ours, asked of the authorizer by the admission policies --------------------------
VERB_APPROVE = "approve"
VERB_ROLLBACK = "rollback"
VERB_WAIVE = "waive"
VERB_CERTIFY = "certify"

ADMISSION_POLICIES = (
    "trimwheel-approvers",
    "trimwheel-approvals",
    "trimwheel-rollouts",
    "trimwheel-certificates",
    "trimwheel-models",
    "trimwheel-alarms",
    "trimwheel-operator-only",
    "trimwheel-worker-leases",
    "trimwheel-placement",
    "trimwheel-operator-objects",
    "trimwheel-operator-jobs",
)
"""ValidatingAdmissionPolicies of the chart, each with a binding of its name."""

# --- condition types --------------------------------------------------------------------------
READY = "Ready"
RECONCILING = "Reconciling"
STALLED = "Stalled"
CERTIFIED = "Certified"
DRIFTED = "Drifted"
DEGRADED = "Degraded"
ACTIVE = "Active"
OUTSIDE_LIMITS = "OutsideLimits"
AWAITING_APPROVAL = "AwaitingApproval"
PAUSED = "Paused"
ROLLED_BACK = "RolledBack"
QUEUED = "Queued"


class Reason:
    """CamelCase reasons of conditions, decisions and Events.

    Each comment is the reason's line in docs/reference/reasons.md, each heading a part of it.
    """

    # AdaptiveModel
    WORKERS_READY = "WorkersReady"  # every replica is Ready and on the current epoch
    WORKERS_NOT_READY = "WorkersNotReady"  # some replica is missing, starting or behind
    POD_CANNOT_START = "PodCannotStart"  # a container fails or cannot be made; it is named
    POD_UNSCHEDULABLE = "PodUnschedulable"  # no node takes the pod
    PODS_REFUSED = "PodsRefused"  # the API server refuses pods: a quota, a webhook
    APPLYING = "Applying"  # the spec is being turned into objects
    APPLIED = "Applied"  # the spec is applied
    INVALID_SPEC = "InvalidSpec"  # a field breaks a rule that the schema could not express
    APPLY_REFUSED = "ApplyRefused"  # the API server refuses a worker object
    RULE_FAILED = "RuleFailed"  # a rule of the operator raised; the others ran all the same
    LIMIT_EXCEEDED = "LimitExceeded"  # a stored value lies beyond a limit that was made later
    WITHIN_LIMITS = "WithinLimits"  # what lay beyond a limit has been changed
    NAME_TAKEN = "NameTaken"  # somebody else's Deployment or Service has the model's name
    DENSE = "Dense"  # the model serves full depth, which needs no certificate
    CERTIFICATE_VALID = "CertificateValid"  # the promise behind the policy stands
    CERTIFICATE_EXPIRED = "CertificateExpired"  # the promise ran out; it acts like a revoked one
    CERTIFICATE_REVOKED = "CertificateRevoked"  # audits showed harm after it was issued
    UNCERTIFIED = "Uncertified"  # the policy carries no certificate for this model
    MODEL_DIGEST_CHANGED = "ModelDigestChanged"  # the certificate names another model
    HARMFUL = "Harmful"  # audited disagreement broke the promise
    HARMLESS = "Harmless"  # inputs moved, audited disagreement did not
    NOT_ENOUGH_EVIDENCE = "NotEnoughEvidence"  # no alarm, and no verdict
    COVARIATE_DRIFT = "CovariateDrift"  # inputs moved; audits decide whether that does harm
    SERVING_FULL_DEPTH = "ServingFullDepth"  # no valid certificate: workers run the dense policy
    NO_ROOM_FOR_FULL_DEPTH = "NoRoomForFullDepth"  # harmful, but workers could not carry full depth
    HEALTHY = "Healthy"  # what is meant to be served is served
    # PolicyRollout
    ACCEPTED = "Accepted"  # the object is valid and waits for nothing
    ANOTHER_ROLLOUT_ACTIVE = "AnotherRolloutActive"  # one at a time; the others wait
    STARTED = "Started"  # the candidate is resident in every worker
    SHADOW = "Shadow"  # the candidate is evaluated in audits and exposed to nobody
    STEP_ADVANCED = "StepAdvanced"  # the weight went to the next step
    STEP_TIMED_OUT = "StepTimedOut"  # a step found no evidence within its maximum time
    GUARD_FAILED = "GuardFailed"  # a guard showed harm, or a worker left by itself
    ABORTED = "Aborted"  # somebody set spec.abort, or deleted the rollout
    REJECTED = "Rejected"  # by a person
    REJECTED_DIGEST = "RejectedDigest"  # this digest was rolled back or rejected before
    ALREADY_STABLE = "AlreadyStable"  # a Canary names the policy that everyone is served
    ROLLOUT_GONE = "RolloutGone"  # a rollout was deleted while its candidate was served
    PREEMPTED = "Preempted"  # a newer Rollback came first
    APPROVAL_REQUIRED = "ApprovalRequired"  # every guard passed; a person decides
    APPROVAL_EXPIRED = "ApprovalExpired"  # nobody approved within rollout.approvalDeadline
    APPROVED = "Approved"  # a person let it be promoted
    PROMOTED = "Promoted"  # everyone is served the policy
    PAUSED_BY_USER = "PausedByUser"  # spec.paused is set; going back stays armed
    RESUMED = "Resumed"  # spec.paused was taken away
    HELD = "Held"  # a person set hold on the assignment
    POLICY_NOT_FOUND = "PolicyNotFound"  # spec.policy names none that is there, yet
    MODEL_NOT_FOUND = "ModelNotFound"  # spec.model names none that is there, yet
    DIGEST_MISMATCH = "DigestMismatch"  # spec.policyDigest is not that of the document
    POLICY_INVALID = "PolicyInvalid"  # a knob breaks a rule, or a worker refuses it
    ADMISSION_MISSING = "AdmissionMissing"  # a forgery was not refused by our policy
    ADMISSION_GAP = "AdmissionGap"  # it was written while an admission policy was not in force
    TARGET_REJECTED = "TargetRejected"  # a Rollback names a digest that was rejected or revoked
    JOURNAL_FULL = "JournalFull"  # decisions wait for the ledger: nothing new is exposed
    NOT_CARRIED_OUT = "NotCarriedOut"  # decided and journaled, but the operator stopped before
    MODEL_GONE = "ModelGone"  # the model was deleted while workers served a policy
    ACCEPTED_BY_UPGRADE = "AcceptedByUpgrade"  # older than the notes on admission: it counts
    NOT_FORMERLY_STABLE = "NotFormerlyStable"  # a Rollback names a digest that never was stable
    STEPS_LOOSER_THAN_MODEL = "StepsLooserThanModel"  # spec.steps expose more, or sooner
    ROLLED_BACK_TO_STABLE = "RolledBackToStable"  # a Rollback was carried out
    ACKNOWLEDGED = "Acknowledged"  # every live worker acknowledged, or its lease ran out
    # TuningRun
    JOB_CREATED = "JobCreated"  # the run's Job was made
    RUNNING = "Running"  # no outcome yet
    SUCCEEDED = "Succeeded"  # a policy was certified
    NOTHING_CERTIFIED = "NothingCertified"  # full depth is kept
    NO_IMPROVEMENT = "NoImprovement"  # certified, but no cheaper than the stable policy
    FAILED = "Failed"  # the message says why; the incumbent stays
    JOB_FAILED = "JobFailed"  # the Job ended without a word
    TOO_FEW_RECORDS = "TooFewRecords"  # fewer audits than the search needs
    TOO_FEW_CLUSTERS = "TooFewClusters"  # audits depend on each other too much to certify anything
    STOPPED = "Stopped"  # by the operator; the condition says why
    MODEL_DELETED = "ModelDeleted"  # while its TuningRun ran: the Job was stopped
    SUPERSEDED = "Superseded"  # harm started a newer TuningRun; this one's window is mixed


class Action:
    """What a decision in `status.decisions[].action` did; each has an Event and a metric child."""

    START = "Start"
    ADVANCE = "Advance"
    AWAIT = "Await"
    PROMOTE = "Promote"
    ROLL_BACK = "RollBack"
    ABORT = "Abort"
    PAUSE = "Pause"
    RESUME = "Resume"
    HOLD = "Hold"
    REFUSE = "Refuse"
    WITHDRAW = "Withdraw"  # the decision before was journaled and never took effect
    FALL_BACK = "FallBack"  # everyone is sent to full depth
    RESTORE = "Restore"  # the promoted policy is served again


VERDICT_PASS = "Pass"
VERDICT_FAIL = "Fail"
VERDICT_NOT_ENOUGH = "NotEnoughEvidence"
VERDICTS = (VERDICT_PASS, VERDICT_FAIL, VERDICT_NOT_ENOUGH)

ARM_STABLE = "stable"
ARM_CANDIDATE = "candidate"
ARMS = (ARM_STABLE, ARM_CANDIDATE)

GUARD_DISAGREEMENT = "disagreement"
GUARD_ERRORS = "errors"
GUARD_LATENCY = "latency"
GUARD_CAPACITY = "capacity"
GUARD_PARITY = "parity"
GUARDS = (GUARD_DISAGREEMENT, GUARD_ERRORS, GUARD_LATENCY, GUARD_CAPACITY, GUARD_PARITY)

# --- HTTP -------------------------------------------------------------------------------------
SESSION_HEADER = "x-session-id"
PARAM_EXIT = "trimwheel_exit"
PARAM_LAYERS = "trimwheel_layers"
PARAM_ARM = "trimwheel_arm"
PARAM_DIGEST = "trimwheel_policy_digest"

# --- ports ------------------------------------------------------------------------------------
WORKER_PORT = 8080
"""HTTP of a worker pod, for clients."""
WORKER_PROBES_PORT = 8083
"""Probes and /metrics of a worker pod, for the kubelet and Prometheus."""
OPERATOR_METRICS_PORT = 8081
PIPELINES_METRICS_PORT = 8082

# --- MLflow -----------------------------------------------------------------------------------
ALIAS_STABLE = "stable"
ALIAS_CANDIDATE = "candidate"
TAG_TUNING_RUN = "trimwheel.tuningrun"


def experiment_name(namespace: str, model: str) -> str:
    """MLflow experiment of a model."""
    return f"trimwheel/{namespace}/{model}"


def registered_policy_name(namespace: str, model: str) -> str:
    """MLflow registered model whose versions are this model's policies."""
    return f"{namespace}.{model}.policy"
