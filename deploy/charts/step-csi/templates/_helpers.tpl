{{- define "step-csi.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "step-csi.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains (include "step-csi.name" .) .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "step-csi.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "step-csi.selectorLabels" -}}
app.kubernetes.io/name: {{ include "step-csi.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The chart's own labels go before those of the values. */}}
{{- define "step-csi.labels" -}}
{{- $own := dict
  "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-")
  "app.kubernetes.io/version" .Chart.AppVersion
  "app.kubernetes.io/managed-by" .Release.Service }}
{{- mergeOverwrite (dict) .Values.commonLabels $own (include "step-csi.selectorLabels" . | fromYaml) | toYaml }}
{{- end }}

{{/* Without the chart's version, which alone should not restart the pods. */}}
{{- define "step-csi.podLabels" -}}
{{- mergeOverwrite (dict) .Values.commonLabels .Values.podLabels (include "step-csi.selectorLabels" . | fromYaml) | toYaml }}
{{- end }}

{{- define "step-csi.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{- define "step-csi.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "step-csi.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{/* What the plugin reads: its issuers' files lie in /etc/step-csi/issuers/<name>. */}}
{{- define "step-csi.config" -}}
driverName: {{ .Values.driverName }}
clusterDomain: {{ .Values.clusterDomain }}
trustDomain: {{ default .Values.clusterDomain .Values.trustDomain }}
issuers:
{{- range $name, $issuer := .Values.issuers }}
  {{ $name }}:
    url: {{ include "step-csi.issuerURL" (dict "root" $ "name" $name "issuer" $issuer) }}
    {{- if $issuer.fingerprint }}
    fingerprint: {{ $issuer.fingerprint | quote }}
    {{- else }}
    caBundleFile: issuers/{{ $name }}/ca.crt
    {{- end }}
    provisioner:
      type: {{ $issuer.provisioner.type }}
      name: {{ $issuer.provisioner.name | quote }}
      passwordFile: issuers/{{ $name }}/password
    {{- with $issuer.duration }}
    duration:
      {{- toYaml . | nindent 6 }}
    {{- end }}
{{- end }}
policy:
  allowShortNames: {{ .Values.policy.allowShortNames }}
  {{- with .Values.policy.validations }}
  validations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{- define "step-csi.issuerURL" -}}
{{- if .issuer.url -}}
{{ .issuer.url }}
{{- else if eq .name "default" -}}
https://step-certificates.{{ .root.Release.Namespace }}.svc.{{ .root.Values.clusterDomain }}
{{- else -}}
{{- fail (printf "issuers.%s.url: say where the CA is, such as https://ca.example.com" .name) }}
{{- end }}
{{- end }}

{{/* The files of an issuer, as sources of a projected volume. */}}
{{- define "step-csi.issuerSources" -}}
- secret:
    name: {{ .issuer.provisioner.passwordSecret.name }}
    items:
      - key: {{ .issuer.provisioner.passwordSecret.key }}
        path: issuers/{{ .name }}/password
{{- if not .issuer.fingerprint }}
{{- $bundle := .issuer.caBundle | default dict }}
{{- if not (or $bundle.secret $bundle.configMap) }}{{- fail (printf "issuers.%s: give the fingerprint of the CA's root, or its caBundle" .name) }}{{- end }}
- {{ ternary "secret" "configMap" (not (empty $bundle.secret)) }}:
    name: {{ $bundle.secret | default $bundle.configMap }}
    items:
      - key: {{ $bundle.key }}
        path: issuers/{{ .name }}/ca.crt
{{- end }}
{{- end }}
