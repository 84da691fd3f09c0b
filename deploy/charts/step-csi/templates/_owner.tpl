{{/* Fails if another release has the CSIDriver object: Helm's own message does not name the
values to change. lookup finds nothing in helm template. */}}
{{- define "step-csi.checkOwner" -}}
{{- $found := lookup "storage.k8s.io/v1" "CSIDriver" "" .Values.driverName }}
{{- $annotations := dig "metadata" "annotations" (dict) $found | default dict }}
{{- $release := get $annotations "meta.helm.sh/release-name" }}
{{- $namespace := get $annotations "meta.helm.sh/release-namespace" }}
{{- if and $release (or (ne $release .Release.Name) (ne $namespace .Release.Namespace)) }}
{{- fail (printf "driverName: the release %s in the namespace %s already has the driver %s. Upgrade that release, or set driverName to another name, or, for nodes of this driver that the other release leaves out, set csiDriver.create to false" $release $namespace .Values.driverName) }}
{{- end }}
{{- end }}
