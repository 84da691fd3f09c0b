{{/* The port of health and metrics of the registration authority. */}}
{{- define "step-csi.raHTTPPort" -}}
{{- .Values.ra.httpPort | default .Values.httpPort }}
{{- end }}

{{/* What does not fit together: with hostNetwork, ports are ports of the node, which node
plugin and registration authority share. */}}
{{- define "step-csi.portFaults" -}}
{{- if and .Values.ra.httpPort (or (lt (int .Values.ra.httpPort) 1024) (gt (int .Values.ra.httpPort) 65535)) }}
ra.httpPort: {{ .Values.ra.httpPort }} is not a port from 1024 to 65535; lower ports need root, and the registration authority does not run as root
{{- end }}
{{- if eq (include "step-csi.raHTTPPort" .) (toString .Values.ra.port) }}
ra.port: ra.port and {{ ternary "ra.httpPort" "httpPort" (not (empty .Values.ra.httpPort)) }} are the same, {{ .Values.ra.port }}; change one of them
{{- end }}
{{- if and .Values.hostNetwork .Values.ra.hostNetwork (include "step-csi.hasRA" .) }}
{{- if eq (include "step-csi.raHTTPPort" .) (toString .Values.httpPort) }}
ra.httpPort: with hostNetwork and ra.hostNetwork, the node plugin already uses the port {{ .Values.httpPort }} of the nodes; set ra.httpPort to another port
{{- end }}
{{- if eq (toString .Values.ra.port) (toString .Values.httpPort) }}
ra.port: with hostNetwork and ra.hostNetwork, the node plugin's httpPort is the same port of the nodes, {{ .Values.httpPort }}; change one of them
{{- end }}
{{- end }}
{{- end }}

{{/* A replica stops only when its replacement is ready. With hostNetwork, the replacement
needs a node whose ports are free, and there may be none: one replica stops first. */}}
{{- define "step-csi.raStrategy" -}}
{{- if .Values.ra.strategy }}
{{- toYaml .Values.ra.strategy }}
{{- else if .Values.ra.hostNetwork -}}
type: RollingUpdate
rollingUpdate: {maxUnavailable: 1, maxSurge: 0}
{{- else -}}
type: RollingUpdate
rollingUpdate: {maxUnavailable: 0, maxSurge: 1}
{{- end }}
{{- end }}
