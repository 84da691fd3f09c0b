{{/* The port of health and metrics of the registration authority. */}}
{{- define "step-csi.raHTTPPort" -}}
{{- .Values.ra.httpPort | default .Values.httpPort }}
{{- end }}

{{/* With hostNetwork, ports are ports of the node, which node plugin and registration
authority share. */}}
{{- define "step-csi.checkHostPorts" -}}
{{- if and .Values.hostNetwork .Values.ra.hostNetwork (include "step-csi.hasRA" .) }}
{{- if eq (include "step-csi.raHTTPPort" .) (toString .Values.httpPort) }}
{{- fail (printf "ra.httpPort: with hostNetwork and ra.hostNetwork, the node plugin already uses the port %v of the nodes; set ra.httpPort to another port" .Values.httpPort) }}
{{- end }}
{{- if eq (toString .Values.ra.port) (toString .Values.httpPort) }}
{{- fail "ra.port: with hostNetwork and ra.hostNetwork, the node plugin's httpPort is the same port of the nodes; change one of them" }}
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
