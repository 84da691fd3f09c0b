{{/* Why an upgrade of the DaemonSet .existing must not change the driver's name or the
kubelet's directory, or nothing. An argument and a host path have both in all versions of
the chart. Mounted volumes keep the name and the directory with which they were made: the
node plugin would not find them. */}}
{{- define "step-csi.driverChange" -}}
{{- $pod := dig "spec" "template" "spec" dict .existing }}
{{- $old := dict "driverName" "" "kubeletDir" "" }}
{{- range $pod.volumes }}
{{- with dig "hostPath" "path" "" . }}
{{- if contains "/plugins/" . }}{{ $_ := set $old "driverName" (base .) }}{{ end }}
{{- end }}
{{- end }}
{{- range $pod.containers }}
{{- range .args }}
{{- if hasPrefix "--kubelet-dir=" . }}{{ $_ := set $old "kubeletDir" (clean (trimPrefix "--kubelet-dir=" .)) }}{{ end }}
{{- end }}
{{- end }}
{{- $ends := printf "Pods with volumes of %s would keep their files, but nothing would renew their certificates, and the kubelet could not remove these pods. Delete the pods first, uninstall this release, and install it again" $old.driverName }}
{{- $unused := printf "If no pod has a volume of %s, perhaps because the value never worked, set allowDriverChange=true for this upgrade" $old.driverName }}
{{- if and $old.driverName (ne $old.driverName .Values.driverName) }}
driverName: this release runs as {{ $old.driverName }}, and this upgrade changes it to {{ .Values.driverName }}. {{ $ends }}; or set driverName back, install a release with driverName {{ .Values.driverName }} in another namespace, and uninstall this one when all pods use the new name. {{ $unused }}
{{- end }}
{{- if and $old.kubeletDir (ne $old.kubeletDir (clean .Values.kubeletDir)) }}
kubeletDir: this release runs with {{ $old.kubeletDir }}, and this upgrade changes it to {{ clean .Values.kubeletDir }}. {{ $ends }}; or set kubeletDir back, and install a release for the nodes with the other directory (docs/distributions.md). {{ $unused }}
{{- end }}
{{- end }}
