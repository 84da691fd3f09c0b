{{/* The image. A registry takes the place of the one at the front of the repository,
which is the part before the first "/" if it has a "." or ":", or is "localhost". */}}
{{- define "step-csi.image" -}}
{{- $repository := .Values.image.repository }}
{{- with .Values.image.registry | default .Values.global.imageRegistry }}
{{- $repository = printf "%s/%s" . (regexReplaceAll `^([^/]*[.:][^/]*|localhost)/` $repository "") }}
{{- end }}
{{- if .Values.image.digest -}}
{{ $repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ $repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{/* The pull secrets of all pods. Those of global are names or objects: parent charts
use both forms. */}}
{{- define "step-csi.imagePullSecrets" -}}
{{- $secrets := .Values.imagePullSecrets | default list }}
{{- range .Values.global.imagePullSecrets }}
{{- $secrets = append $secrets (kindIs "string" . | ternary (dict "name" .) .) }}
{{- end }}
{{- with $secrets | uniq -}}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
