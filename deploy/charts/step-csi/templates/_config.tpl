{{/* The annotations of pods that read a configuration: those of the values, and the
configuration as one line of JSON. The pods mount it as a file. So the pods of each revision
keep their own configuration, also when a later upgrade has failed. */}}
{{- define "step-csi.configAnnotations" -}}
{{- $config := .config | fromYaml }}
{{- with $config.Error }}{{ fail (printf "the configuration of the %s: %s" $.pods .) }}{{ end }}
{{- $all := mergeOverwrite (dict) (.annotations | default dict) (dict "step-csi.io/config" (toRawJson $config)) }}
{{- $bytes := 0 }}
{{- range $key, $value := $all }}{{ $bytes = add $bytes (len $key) (len (toString $value)) }}{{ end }}
{{- if gt (int $bytes) 262144 }}
{{- fail (printf "the configuration and the annotations of the %s have %d bytes, but Kubernetes allows 262144 (256 KiB): shorten issuers, policy.validations or the annotations" .pods $bytes) }}
{{- end }}
{{- toYaml $all }}
{{- end }}

{{/* The configuration file, as a source of a projected volume. */}}
{{- define "step-csi.configSource" -}}
- downwardAPI:
    items:
      - path: step-csi.yaml
        fieldRef: {fieldPath: "metadata.annotations['step-csi.io/config']"}
{{- end }}
