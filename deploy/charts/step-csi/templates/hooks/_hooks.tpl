{{/* The pods of Helm's hooks have their own labels, which no selector of the chart matches. */}}
{{- define "step-csi.hookLabels" -}}
{{- $own := dict "app.kubernetes.io/name" (printf "%s-%s" (include "step-csi.name" .root | trunc 45 | trimSuffix "-") .hook) "app.kubernetes.io/instance" .root.Release.Name }}
{{- mergeOverwrite (dict) .root.Values.commonLabels $own | toYaml }}
{{- end }}

{{- define "step-csi.hookName" -}}
{{ include "step-csi.fullname" .root | trunc 45 | trimSuffix "-" }}-{{ .hook }}
{{- end }}

{{/* A hook's Job runs once, and ends before Helm's own timeout, which names no reason. */}}
{{- define "step-csi.hookJob" -}}
backoffLimit: 0
activeDeadlineSeconds: {{ .Values.hooks.timeoutSeconds }}
ttlSecondsAfterFinished: 3600
{{- end }}

{{/* What the pods of hooks have in common: they pass the Pod Security level restricted, and
run where the provisioner's secrets may be. They do not tolerate all taints: they could then
run on nodes that are not ready. */}}
{{- define "step-csi.hookPod" -}}
{{- $place := .Values }}
{{- $affinity := .Values.affinity }}
{{- $tolerations := list }}
{{- if include "step-csi.hasRA" . }}
{{- $place = .Values.ra }}
{{- $affinity = include "step-csi.raAffinity" . | fromJson }}
{{- end }}
{{- range $place.tolerations }}
{{- if .key }}{{ $tolerations = append $tolerations . }}{{ end }}
{{- end }}
{{- $all := ne (len $tolerations) (len ($place.tolerations | default list)) }}
{{- if or $all (and (include "step-csi.hasRA" .) (eq .Values.ra.runOn "control-plane")) }}
{{- $tolerations = append $tolerations (dict "key" "node-role.kubernetes.io/control-plane" "operator" "Exists") }}
{{- end }}
restartPolicy: Never
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with concat $tolerations (.Values.hooks.tolerations | default list) }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $place.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  {{- if not (include "step-csi.openshift" .) }}{{/* OpenShift chooses them */}}
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  {{- end }}
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "step-csi.hookContainer" -}}
image: {{ include "step-csi.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
terminationMessagePolicy: FallbackToLogsOnError
resources:
  requests: {cpu: 10m, memory: 64Mi}
  limits: {memory: 256Mi}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}
