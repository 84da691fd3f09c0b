{{/* Every template begins with step-csi.values: it sets what is missing or null to its
default, and rejects values that cannot work, with all reasons at once. It runs once:
all templates share the context. */}}
{{- define "step-csi.values" -}}
{{- if not (hasKey . "step-csi.values") }}
{{- include "step-csi.setDefaults" . }}
{{- $faults := list }}
{{- range splitList "\n" (include "step-csi.faults" .) }}
{{- with trim . }}{{ $faults = append $faults (printf "- %s" .) }}{{ end }}
{{- end }}
{{- if $faults }}{{ fail (printf "step-csi cannot work with these values:\n%s" (join "\n" $faults)) }}{{ end }}
{{- $_ := set .Values "kubeletDir" (clean .Values.kubeletDir) }}
{{- $_ := set . "step-csi.values" true }}
{{- end }}
{{- end }}

{{/* Helm removes a value that is null, with all defaults below it. defaults.yaml has the
default of each path. The keys of maps such as nodeSelector and resources.limits are the
user's: they are not restored one by one. An issuer that is null is removed. */}}
{{- define "step-csi.setDefaults" -}}
{{- $removed := and (kindIs "map" .Values.issuers) (kindIs "invalid" (index .Values.issuers "default")) }}
{{- range $name, $issuer := .Values.issuers }}
{{- if kindIs "invalid" $issuer }}{{ $_ := unset $.Values.issuers $name }}{{ end }}
{{- end }}
{{- range $path, $default := .Files.Get "defaults.yaml" | fromYaml }}
{{- if not (and $removed (hasPrefix "issuers.default." $path)) }}
{{- $section := $.Values }}
{{- $keys := splitList "." $path }}
{{- range initial $keys }}
{{- if kindIs "invalid" (index $section .) }}{{ $_ := set $section . dict }}{{ end }}
{{- $section = index $section . }}
{{- end }}
{{- if kindIs "invalid" (index $section (last $keys)) }}{{ $_ := set $section (last $keys) $default }}{{ end }}
{{- end }}
{{- end }}
{{- end }}
