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

{{/* The files of the node plugin's configuration, as sources of a projected volume. */}}
{{- define "step-csi.nodeSources" -}}
{{- if eq .Values.mode "node" }}
{{- include "step-csi.issuerSources" . }}
{{- else }}
{{- $authority := include "step-csi.raIssuer" . }}
{{- range $name, $issuer := .Values.issuers }}
{{- if or (eq $name $authority) ($issuer.roots | default dict).pinned }}
{{- with include "step-csi.rootSource" (dict "name" $name "issuer" $issuer) }}
{{ . }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- range $name, $issuer := .Values.issuers }}
{{- $additional := $issuer.additionalRoots | default dict }}
{{- with $additional.configMap }}
- configMap:
    name: {{ . }}
    items:
      - key: {{ $additional.key | default "ca.crt" }}
        path: issuers/{{ $name }}/additional.crt
{{- end }}
{{- end }}
{{- end }}

{{/* Arguments by which --check-config names the Secret or ConfigMap of a missing file. */}}
{{- define "step-csi.fileSources" -}}
{{- $settings := dict "ca.crt" "caBundle" "server.crt" "serverTLSBundle" "additional.crt" "additionalRoots" "password" "provisioner.passwordSecret"
  "key" "provisioner.keySecret" "tls.crt" "provisioner.certificateSecret" "tls.key" "provisioner.certificateSecret" }}
{{- range $kind, $source := .source }}
{{- range $source.items }}
- {{ printf "--file-source=%s=key %s in the %s %s of the namespace %s (in the chart: %s.%s)" .path .key (title $kind) $source.name $.namespace
  (dir .path | replace "/" ".") (get $settings (base .path)) | quote }}
{{- end }}
{{- end }}
{{- end }}
