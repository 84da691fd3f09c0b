{{/* A line if the Pod Security level of the release's namespace does not admit the node
plugin. lookup finds nothing in helm template, and before helm install --create-namespace. */}}
{{- define "step-csi.podSecurity" -}}
{{- $namespace := lookup "v1" "Namespace" "" .Release.Namespace }}
{{- $level := dig "metadata" "labels" "pod-security.kubernetes.io/enforce" "privileged" $namespace }}
{{- if and (ne $level "privileged") (not (include "step-csi.openshift" .)) }}
the namespace {{ .Release.Namespace }} has the Pod Security level {{ $level }}, which does not admit the node plugin, because it mounts into pods; run: kubectl label --overwrite namespace {{ .Release.Namespace }} pod-security.kubernetes.io/enforce=privileged
{{- end }}
{{- end }}
