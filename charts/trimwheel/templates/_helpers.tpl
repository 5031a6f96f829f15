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
