{{/* The groups of alerts, as the values change them. */}}
{{- define "step-csi.alertGroups" -}}
{{- $values := .Values.monitoring.prometheusRule }}
{{- $files := list "alerts/plugin.yaml" }}
{{- if include "step-csi.hasRA" . }}{{ $files = append $files "alerts/authority.yaml" }}{{ end }}
{{- range $file := $files }}
{{- range $group := ($.Files.Get $file | fromYaml).groups }}
{{- $rules := list }}
{{- range $rule := $group.rules }}
{{- $own := get $values.alerts $rule.alert | default dict }}
{{- $_ := set $rule "expr" (include "step-csi.alertExpression" (dict "rule" $rule "thresholds" $values.thresholds)) }}
{{- if ne (toString $own.enabled) "false" }}
{{- $rules = append $rules (mergeOverwrite $rule (omit $own "enabled")) }}
{{- end }}
{{- end }}
{{- with $rules }}
- {{- toYaml (set $group "rules" .) | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}
{{- with $values.additionalGroups }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The expressions have the default thresholds, so that promtool can test them. */}}
{{- define "step-csi.alertExpression" -}}
{{- $expression := .rule.expr }}
{{- if eq .rule.alert "StepCSIRootExpiring" }}
{{- $expression = replace "< 30 * 86400" (printf "< %v * 86400" .thresholds.rootExpiryDays) $expression }}
{{- else if eq .rule.alert "StepCSIAuthorityRefusing" }}
{{- $expression = replace "> 0.5" (printf "> %v" .thresholds.refusedRatio) $expression }}
{{- else if has .rule.alert (list "StepCSIAuthorityCertificateExpiring" "StepCSITokenCertificateExpiring") }}
{{- $expression = replace "< 0.2 *" (printf "< %v *" .thresholds.lifetimeLeft) $expression }}
{{- end }}
{{- $expression }}
{{- end }}

{{/* Prints a line for each misspelt name, which would change no alert. */}}
{{- define "step-csi.alertFaults" -}}
{{- $names := list }}
{{- range list "alerts/plugin.yaml" "alerts/authority.yaml" }}
{{- range ($.Files.Get . | fromYaml).groups }}{{ range .rules }}{{ $names = append $names .alert }}{{ end }}{{ end }}
{{- end }}
{{- range $name, $_ := .Values.monitoring.prometheusRule.alerts }}
{{- if not (has $name $names) }}
monitoring.prometheusRule.alerts: {{ $name }} is none of the alerts; they are {{ $names | uniq | sortAlpha | join ", " }}
{{- end }}
{{- end }}
{{- end }}
