{{/*
Names are fixed, not derived from the release: admission policies name the accounts, and there is one
release a cluster.
*/}}

{{/* Labels of every object. Call with (dict "root" $ "component" NAME); component may be empty. */}}
{{- define "trimwheel.labels" -}}
{{ include "trimwheel.selector" . }}
app.kubernetes.io/part-of: trimwheel
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Labels that never change, so that selectors survive an upgrade. */}}
{{- define "trimwheel.selector" -}}
app.kubernetes.io/name: {{ if .component }}trimwheel-{{ .component }}{{ else }}trimwheel{{ end }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- if .component }}
app.kubernetes.io/component: {{ .component }}
{{- end }}
{{- end }}

{{/* Image reference. Call with (dict "root" $ "name" "operator"). */}}
{{- define "trimwheel.image" -}}
{{- $image := index .root.Values.images .name -}}
{{- with .root.Values.images.registry }}{{ . }}/{{ end -}}
{{ $image.repository }}:{{ $image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{/* The username under which the API server sees an account of the release. Call with (dict "root" $ "name" NAME). */}}
{{- define "trimwheel.user" -}}
system:serviceaccount:{{ .root.Release.Namespace }}:trimwheel-{{ .name }}
{{- end }}

{{/*
Match condition of every admission policy. The operator proves that each is in force by a dry run that this one alone must
refuse: of two policies that refuse, the API server names only one. So each lets the probes of the others pass, which are
never stored. Call with (dict "root" $ "name" NAME), NAME as in trimwheel-NAME.
*/}}
{{- define "trimwheel.selfTest" -}}
- name: not-the-self-test-of-another-policy
  expression: >-
    !(request.?dryRun.orValue(false) &&
    request.userInfo.username == {{ include "trimwheel.user" (dict "root" .root "name" "operator") | squote }} &&
    request.?name.orValue('').startsWith('trimwheel-self-test-') &&
    request.?name.orValue('') != 'trimwheel-self-test-{{ .name }}')
{{- end }}

{{/*
Validation of the policies whose kinds the operator may write under a reserved name, to try them: never to store anything.
*/}}
{{- define "trimwheel.onlyDryRuns" -}}
- expression: >-
    request.userInfo.username != {{ include "trimwheel.user" (dict "root" $ "name" "operator") | squote }} ||
    request.?dryRun.orValue(false)
  reason: Forbidden
  message: the operator writes no such object but as a dry run, to try admission
{{- end }}

{{/* Secret that holds the ledger's address. */}}
{{- define "trimwheel.ledgerSecret" -}}
{{ .Values.ledger.existingSecret.name | default "trimwheel-ledger" }}
{{- end }}

{{/* What both Deployments' pods are: restricted, and where they may run. */}}
{{- define "trimwheel.podDefaults" -}}
automountServiceAccountToken: true
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.scheduling.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.scheduling.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.scheduling.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.scheduling.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{/* What the pods of TuningRun Jobs have beyond what the operator gives them, as JSON. */}}
{{- define "trimwheel.jobPod" -}}
{{- $pod := dict -}}
{{- range $key := list "nodeSelector" "tolerations" "affinity" -}}
{{- with index $.Values.tuning $key | default (index $.Values.scheduling $key) }}{{ $_ := set $pod $key . }}{{ end -}}
{{- end -}}
{{- with .Values.tuning.priorityClassName }}{{ $_ := set $pod "priorityClassName" . }}{{ end -}}
{{ toJson $pod }}
{{- end }}

{{- define "trimwheel.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Scrape annotations, for a Prometheus without PodMonitors. Call with the port. */}}
{{- define "trimwheel.scrape" -}}
prometheus.io/scrape: "true"
prometheus.io/port: {{ . | quote }}
prometheus.io/path: /metrics
{{- end }}

{{/*
Environment of operator and pipelines alike. TRIMWHEEL_BIND is not here: the operator hands it on
unexpanded. Call with the root.
*/}}
{{- define "trimwheel.environment" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_UID
  valueFrom: {fieldRef: {fieldPath: metadata.uid}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- {name: TRIMWHEEL_RELEASE_NAMESPACE, value: {{ .Release.Namespace | quote }}}
- {name: TRIMWHEEL_RELEASE_NAME, value: {{ .Release.Name | quote }}}
- {name: PROMETHEUS_URL, value: {{ .Values.prometheus.url | quote }}}
- {name: TRIMWHEEL_SCRAPE_INTERVAL, value: {{ .Values.prometheus.scrapeInterval | quote }}}
- {name: MLFLOW_TRACKING_URI, value: {{ .Values.mlflow.url | quote }}}
- {name: MLFLOW_PUBLIC_URL, value: {{ .Values.mlflow.publicUrl | default .Values.mlflow.url | quote }}}
- {name: TRIMWHEEL_RECORDS_URI, value: {{ .Values.records.uri | quote }}}
- {name: TRIMWHEEL_RAY_ADDRESS, value: {{ .Values.ray.address | quote }}}
- {name: TRIMWHEEL_RAY_CPUS, value: {{ .Values.ray.cpus | quote }}}
- {name: TRIMWHEEL_ALLOWED_PREFIXES, value: {{ join "," .Values.models.allowedPrefixes | quote }}}
# The root file system is read-only; libraries write to these.
- {name: TMPDIR, value: /var/run/trimwheel/scratch}
- {name: HOME, value: /var/run/trimwheel/scratch}
{{- end }}

{{/*
Names and sources of environment variables, as admission compares them: NAME=VALUE, NAME<secret/NAME/KEY,
NAME<config/NAME/KEY, NAME<field/PATH. Call with a list as in a container; answers JSON, which CEL reads.
*/}}
{{- define "trimwheel.variables" -}}
{{- $seen := list -}}
{{- range . -}}
{{- $from := .valueFrom | default dict -}}
{{- if $from.secretKeyRef }}{{ $seen = append $seen (printf "%s<secret/%s/%s" .name $from.secretKeyRef.name $from.secretKeyRef.key) -}}
{{- else if $from.configMapKeyRef }}{{ $seen = append $seen (printf "%s<config/%s/%s" .name $from.configMapKeyRef.name $from.configMapKeyRef.key) -}}
{{- else if $from.fieldRef }}{{ $seen = append $seen (printf "%s<field/%s" .name $from.fieldRef.fieldPath) -}}
{{- else }}{{ $seen = append $seen (printf "%s=%s" .name (.value | default "" | toString)) -}}
{{- end -}}
{{- end -}}
{{ toJson $seen }}
{{- end }}

{{/* A variable `e` of a container in that form, in CEL. */}}
{{- define "trimwheel.variableInCEL" -}}
(!has(e.valueFrom) ? e.name + '=' + e.?value.orValue('') :
has(e.valueFrom.secretKeyRef) ? e.name + '<secret/' + e.valueFrom.secretKeyRef.name + '/' + e.valueFrom.secretKeyRef.key :
has(e.valueFrom.configMapKeyRef) ? e.name + '<config/' + e.valueFrom.configMapKeyRef.name + '/' + e.valueFrom.configMapKeyRef.key :
has(e.valueFrom.fieldRef) ? e.name + '<field/' + e.valueFrom.fieldRef.fieldPath : e.name + '<something else')
{{- end }}

{{/* What a pod's spec of the operator's must not have, in CEL; `pod` is the spec, `was` the one before. */}}
{{- define "trimwheel.plainPodInCEL" -}}
!variables.pod.?hostNetwork.orValue(false) && !variables.pod.?hostPID.orValue(false) &&
!variables.pod.?hostIPC.orValue(false) && !variables.pod.?shareProcessNamespace.orValue(false) &&
variables.pod.?hostUsers.orValue(true) &&
variables.pod.?nodeName.orValue('') == variables.was.?nodeName.orValue('') &&
variables.pod.?runtimeClassName.orValue('') == variables.was.?runtimeClassName.orValue('') &&
variables.pod.?hostAliases.orValue([]) == variables.was.?hostAliases.orValue([]) &&
variables.pod.?dnsConfig.orValue({}) == variables.was.?dnsConfig.orValue({}) &&
variables.pod.?dnsPolicy.orValue('ClusterFirst') == variables.was.?dnsPolicy.orValue('ClusterFirst') &&
variables.pod.?securityContext.runAsNonRoot.orValue(false) &&
variables.pod.?securityContext.runAsUser.orValue(0) > 0 &&
variables.pod.?automountServiceAccountToken.orValue(true)
{{- end }}

{{/* What a container `c` of the operator's must not have, in CEL. */}}
{{- define "trimwheel.plainContainerInCEL" -}}
!has(c.lifecycle) && !has(c.volumeDevices) &&
![c.?startupProbe, c.?readinessProbe, c.?livenessProbe].exists(p, p.hasValue() && has(p.value().exec)) &&
!c.?securityContext.privileged.orValue(false) &&
!c.?securityContext.allowPrivilegeEscalation.orValue(true) &&
c.?securityContext.capabilities.drop.orValue([]) == ['ALL'] &&
c.?securityContext.capabilities.add.orValue([]) == [] &&
c.?securityContext.procMount.orValue('Default') == 'Default' &&
c.?securityContext.runAsNonRoot.orValue(true) && c.?securityContext.runAsUser.orValue(1) > 0
{{- end }}

{{/* Variables that Jobs read from the ConfigMap trimwheel-tuning: no secret is among them. */}}
{{- define "trimwheel.tuningConfig" -}}
TRIMWHEEL_RELEASE_NAMESPACE: {{ .Release.Namespace | quote }}
TRIMWHEEL_RELEASE_NAME: {{ .Release.Name | quote }}
PROMETHEUS_URL: {{ .Values.prometheus.url | quote }}
TRIMWHEEL_SCRAPE_INTERVAL: {{ .Values.prometheus.scrapeInterval | quote }}
MLFLOW_TRACKING_URI: {{ .Values.mlflow.url | quote }}
MLFLOW_PUBLIC_URL: {{ .Values.mlflow.publicUrl | default .Values.mlflow.url | quote }}
TRIMWHEEL_RECORDS_URI: {{ .Values.records.uri | quote }}
TRIMWHEEL_RAY_ADDRESS: {{ .Values.ray.address | quote }}
TRIMWHEEL_RAY_CPUS: {{ .Values.ray.cpus | quote }}
TRIMWHEEL_ALLOWED_PREFIXES: {{ join "," .Values.models.allowedPrefixes | quote }}
{{- range .Values.pipelines.env }}
{{- if not (or .valueFrom (contains "$(" (.value | default "" | toString))) }}
{{ .name }}: {{ .value | default "" | toString | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* The rest of pipelines.env: references, as a JSON list. */}}
{{- define "trimwheel.tuningReferences" -}}
{{- $rest := list -}}
{{- range .Values.pipelines.env -}}
{{- if or .valueFrom (contains "$(" (.value | default "" | toString)) }}{{ $rest = append $rest . }}{{ end -}}
{{- end -}}
{{ toJson $rest }}
{{- end }}

{{/*
Whether the cluster itself cleans up, in CEL: the garbage collector, and the deletion of a namespace. Both have
accounts of their own in kube-system; where the controller manager runs without --use-service-account-credentials
they are system:kube-controller-manager. They delete, and change owners and finalizers, and nothing else.
*/}}
{{- define "trimwheel.collectorInCEL" -}}
request.userInfo.username in ['system:serviceaccount:kube-system:generic-garbage-collector',
'system:serviceaccount:kube-system:namespace-controller', 'system:kube-controller-manager'] &&
request.?subResource.orValue('') == '' && (request.operation == 'DELETE' ||
(request.operation == 'UPDATE' && object.spec == oldObject.spec &&
object.metadata.?labels == oldObject.metadata.?labels &&
object.metadata.?annotations == oldObject.metadata.?annotations))
{{- end }}
