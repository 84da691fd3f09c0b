{{- define "step-csi.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "step-csi.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains (include "step-csi.name" .) .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "step-csi.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "step-csi.selectorLabels" -}}
app.kubernetes.io/name: {{ include "step-csi.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The chart's own labels take precedence over labels in the values. */}}
{{- define "step-csi.labels" -}}
{{- $own := dict
  "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-")
  "app.kubernetes.io/version" .Chart.AppVersion
  "app.kubernetes.io/managed-by" .Release.Service }}
{{- mergeOverwrite (dict) .Values.commonLabels $own (include "step-csi.selectorLabels" . | fromYaml) | toYaml }}
{{- end }}

{{/* Without the chart's version: a new chart version alone must not restart the pods. */}}
{{- define "step-csi.podLabels" -}}
{{- mergeOverwrite (dict) .Values.commonLabels .Values.podLabels (include "step-csi.selectorLabels" . | fromYaml) | toYaml }}
{{- end }}

{{/* "true" if this release has a registration authority of its own. */}}
{{- define "step-csi.hasRA" -}}
{{- if and (eq .Values.mode "ra") (not .Values.ra.existing.release) }}true{{ end }}
{{- end }}

{{/* The name of the objects of the release with the registration authority: this release,
or ra.existing.release. */}}
{{- define "step-csi.raFullname" -}}
{{- if not .Values.ra.existing.release }}
{{- include "step-csi.fullname" . }}
{{- else }}
{{- .Values.ra.existing.fullname | default (include "step-csi.fullname" (dict
  "Chart" .Chart "Values" (dict "nameOverride" .Values.nameOverride) "Release" (dict "Name" .Values.ra.existing.release))) }}
{{- end }}
{{- end }}

{{/* The registration authority's objects have their own names and labels, so that the
DaemonSet's selector never matches its pods. */}}
{{- define "step-csi.raName" -}}
{{- printf "%s-ra" (include "step-csi.raFullname" . | trunc 60 | trimSuffix "-") }}
{{- end }}

{{/* The names of objects without a namespace differ between releases of the same name. */}}
{{- define "step-csi.raClusterName" -}}
{{- printf "%s.%s" (include "step-csi.raName" .) .Release.Namespace }}
{{- end }}

{{- define "step-csi.raSelectorLabels" -}}
app.kubernetes.io/name: {{ include "step-csi.name" . | trunc 60 | trimSuffix "-" }}-ra
app.kubernetes.io/instance: {{ .Values.ra.existing.release | default .Release.Name }}
{{- end }}

{{/* Labels of this release's objects for the registration authority. */}}
{{- define "step-csi.raLabels" -}}
{{- $name := pick (include "step-csi.raSelectorLabels" . | fromYaml) "app.kubernetes.io/name" }}
{{- mergeOverwrite (include "step-csi.labels" . | fromYaml) $name | toYaml }}
{{- end }}

{{- define "step-csi.raPodLabels" -}}
{{- mergeOverwrite (dict) .Values.commonLabels .Values.ra.podLabels (include "step-csi.raSelectorLabels" . | fromYaml) | toYaml }}
{{- end }}

{{/* The affinity of the registration authority, as JSON. The terms of a node affinity are
alternatives, so that runOn adds its expression to each. The label has no value with
kubeadm, and the value "true" with K3s. */}}
{{- define "step-csi.raAffinity" -}}
{{- $affinity := deepCopy (.Values.ra.affinity | default dict) }}
{{- if eq .Values.ra.runOn "control-plane" }}
{{- $own := dict "key" "node-role.kubernetes.io/control-plane" "operator" "Exists" }}
{{- $terms := list }}
{{- range dig "nodeAffinity" "requiredDuringSchedulingIgnoredDuringExecution" "nodeSelectorTerms" (list dict) $affinity }}
{{- $terms = append $terms (set . "matchExpressions" (append (.matchExpressions | default list) $own)) }}
{{- end }}
{{- $required := dict "nodeAffinity" (dict "requiredDuringSchedulingIgnoredDuringExecution" (dict "nodeSelectorTerms" $terms)) }}
{{- $affinity = mergeOverwrite $affinity $required }}
{{- end }}
{{- toJson $affinity }}
{{- end }}

{{/* "true" if the registration authority runs only on nodes that somebody else than the
nodes themselves chooses: by their names, or by labels that a kubelet cannot set on its
own Node. */}}
{{- define "step-csi.raPinned" -}}
{{- $pinned := false }}
{{- range $label, $_ := .Values.ra.nodeSelector }}
{{- if include "step-csi.protectedLabel" $label }}{{ $pinned = true }}{{ end }}
{{- end }}
{{- $affinity := include "step-csi.raAffinity" . | fromJson }}
{{- $terms := dig "nodeAffinity" "requiredDuringSchedulingIgnoredDuringExecution" "nodeSelectorTerms" list $affinity }}
{{- $all := not (empty $terms) }}
{{- range $terms }}
{{- $term := false }}
{{- range .matchExpressions }}
{{- if and (has .operator (list "In" "Exists")) (include "step-csi.protectedLabel" .key) }}{{ $term = true }}{{ end }}
{{- end }}
{{- range .matchFields }}
{{- if and (eq .key "metadata.name") (eq .operator "In") }}{{ $term = true }}{{ end }}
{{- end }}
{{- $all = and $all $term }}
{{- end }}
{{- if or $pinned $all }}true{{ end }}
{{- end }}

{{/* "true" if the admission plugin NodeRestriction keeps kubelets from setting the label:
https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/#noderestriction */}}
{{- define "step-csi.protectedLabel" -}}
{{- $prefix := "" }}
{{- if contains "/" . }}{{ $prefix = splitList "/" . | first }}{{ end }}
{{- $own := list "kubernetes.io/hostname" "kubernetes.io/os" "kubernetes.io/arch"
  "beta.kubernetes.io/os" "beta.kubernetes.io/arch" "beta.kubernetes.io/instance-type"
  "topology.kubernetes.io/zone" "topology.kubernetes.io/region"
  "failure-domain.beta.kubernetes.io/zone" "failure-domain.beta.kubernetes.io/region" }}
{{- if and (regexMatch `(^|\.)(kubernetes|k8s)\.io$` $prefix) (not (regexMatch `(^|\.)(kubelet|node)\.kubernetes\.io$` $prefix)) (not (has . $own)) }}true{{ end }}
{{- end }}

{{/* "true" on OpenShift, whose SecurityContextConstraints decide about pods. */}}
{{- define "step-csi.openshift" -}}
{{- $enabled := toString .Values.openshift.scc.enabled }}
{{- if or (eq $enabled "true") (and (eq $enabled "detect") (.Capabilities.APIVersions.Has "security.openshift.io/v1")) }}true{{ end }}
{{- end }}

{{/* The registration authority accepts only one service account: with that of another
release, the node plugins have the service account of that release. */}}
{{- define "step-csi.serviceAccountName" -}}
{{- if and (eq .Values.mode "ra") .Values.ra.existing.release }}
{{- .Values.serviceAccount.name | default (include "step-csi.raFullname" .) }}
{{- else }}
{{- .Values.serviceAccount.name | default (ternary (include "step-csi.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}
{{- end }}

{{- define "step-csi.raServiceAccountName" -}}
{{- .Values.ra.serviceAccount.name | default (include "step-csi.raName" .) }}
{{- end }}

{{/* The configuration of the node plugin. In mode ra, all its issuers have the URL of
the registration authority, which the node plugin verifies with the root of the CA
that has signed the registration authority's certificate. */}}
{{- define "step-csi.config" -}}
driverName: {{ .Values.driverName }}
{{ include "step-csi.domains" . }}
issuers:
{{- if eq .Values.mode "node" }}
  {{- include "step-csi.issuers" . | trim | nindent 2 }}
{{- else }}
{{- $issuer := include "step-csi.raIssuer" . }}
{{- range $name, $own := .Values.issuers }}
  {{ $name }}:
    url: https://{{ include "step-csi.raName" $ }}.{{ $.Release.Namespace }}.svc.{{ $.Values.clusterDomain }}:{{ $.Values.ra.port }}
    {{- include "step-csi.issuerTrust" (dict "name" $issuer "issuer" (get $.Values.issuers $issuer)) | nindent 4 }}
    provisioner:
      type: ra
      name: {{ $name | quote }}
      tokenFile: token
    {{- with include "step-csi.issuerDuration" $own }}{{ nindent 4 . }}{{ end }}
    {{- with include "step-csi.raIssuerRoots" (dict "name" $name "authority" $issuer "issuer" $own) }}{{ nindent 4 . }}{{ end }}
    {{- with include "step-csi.issuerAnchors" (dict "name" $name "issuer" $own) }}{{ nindent 4 . }}{{ end }}
{{- end }}
{{- end }}
policy:
  allowShortNames: {{ .Values.policy.allowShortNames }}
  {{- if eq .Values.mode "node" }}
  {{- with include "step-csi.policy" .Values.policy }}{{ nindent 2 . }}{{ end }}
  {{- end }}
renewal:
  minInterval: {{ .Values.renewal.minInterval }}
limits:
  volumesPerPod: {{ .Values.limits.volumesPerPod }}
  volumesPerNode: {{ .Values.limits.volumesPerNode }}
metrics:
  perVolume: {{ .Values.metrics.perVolume }}
{{- end }}

{{/* The configuration of the registration authority. */}}
{{- define "step-csi.raConfig" -}}
{{ include "step-csi.domains" . }}
issuers:
  {{- include "step-csi.issuers" . | trim | nindent 2 }}
policy:
  allowShortNames: {{ .Values.policy.allowShortNames }}
  {{- with include "step-csi.policy" .Values.policy }}{{ nindent 2 . }}{{ end }}
authority:
  # Node plugins call the first one.
  names:
    {{- $name := printf "%s.%s" (include "step-csi.raName" .) .Release.Namespace }}
    - {{ $name }}.svc.{{ .Values.clusterDomain }}
    - {{ $name }}.svc
    - {{ $name }}
  issuer: {{ include "step-csi.raIssuer" . | quote }}
  plugin: {{ .Release.Namespace }}/{{ include "step-csi.serviceAccountName" . }}
  {{- with .Values.ra.limits }}
  limits:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  events: {{ .Values.ra.events.enabled }}
{{- end }}

{{- define "step-csi.domains" -}}
clusterDomain: {{ .Values.clusterDomain }}
trustDomain: {{ default .Values.clusterDomain .Values.trustDomain }}
{{- end }}

{{/* The issuers of the process that has the secrets. The files of each issuer are in
/etc/step-csi/issuers/<name>. */}}
{{- define "step-csi.issuers" -}}
{{- range $name, $issuer := .Values.issuers }}
{{ $name }}:
  {{- include "step-csi.issuerURL" (dict "root" $ "name" $name "issuer" $issuer) | nindent 2 }}
  {{- include "step-csi.issuerTrust" (dict "name" $name "issuer" $issuer) | nindent 2 }}
  provisioner:
    type: {{ $issuer.provisioner.type }}
    name: {{ $issuer.provisioner.name | quote }}
    {{- with $issuer.provisioner.kid }}
    kid: {{ . | quote }}
    {{- end }}
    {{- range $secret := include "step-csi.provisionerSecrets" (dict "name" $name "provisioner" $issuer.provisioner) | fromYamlArray }}
    {{- range $secret.files }}
    {{ .setting }}: issuers/{{ $name }}/{{ .file }}
    {{- end }}
    {{- end }}
    {{- if $issuer.provisioner.requireDisableRenewal }}
    requireDisableRenewal: true
    {{- end }}
  {{- with include "step-csi.issuerDuration" $issuer }}{{ nindent 2 . }}{{ end }}
  {{- with include "step-csi.issuerRoots" (dict "mode" $.Values.mode "roots" $issuer.roots) }}{{ nindent 2 . }}{{ end }}
  {{- if eq $.Values.mode "node" }}
  {{- with include "step-csi.issuerAnchors" (dict "name" $name "issuer" $issuer) }}{{ nindent 2 . }}{{ end }}
  {{- end }}
  {{- with include "step-csi.policy" ($issuer.policy | default dict) }}
  policy:
    {{- nindent 4 . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* The Secrets of an issuer's provisioner, as a list: the files with their keys in the
Secret, and the settings that name these files. */}}
{{- define "step-csi.provisionerSecrets" -}}
{{- $password := .provisioner.passwordSecret | default dict }}
{{- $key := .provisioner.keySecret | default dict }}
{{- $certificate := .provisioner.certificateSecret | default dict }}
{{- if eq .provisioner.type "x5c" }}
- name: {{ $certificate.name }}
  files:
    - {setting: certificateFile, file: tls.crt, key: {{ $certificate.certificate | default "tls.crt" }}}
    - {setting: privateKeyFile, file: tls.key, key: {{ $certificate.privateKey | default "tls.key" }}}
{{- else }}
{{- $name := $password.name }}
{{- if and (eq .name "default") (not (or $name $key.name)) }}{{ $name = "step-certificates-provisioner-password" }}{{ end }}
{{- with $name }}
- name: {{ . }}
  files: [{setting: passwordFile, file: password, key: {{ $password.key | default "password" }}}]
{{- end }}
{{- with $key.name }}
- name: {{ . }}
  files: [{setting: keyFile, file: key, key: {{ $key.key | default "key" }}}]
{{- end }}
{{- end }}
{{- end }}

{{/* The URL or the URLs of the CA, and how its server is verified. */}}
{{- define "step-csi.issuerURL" -}}
{{- if .issuer.urls -}}
urls:
  {{- toYaml .issuer.urls | nindent 2 }}
{{- else if .issuer.url -}}
url: {{ .issuer.url }}
{{- else -}}
url: https://step-certificates.{{ .root.Release.Namespace }}.svc.{{ .root.Values.clusterDomain }}
{{- end }}
{{- with .issuer.serverTLS }}
serverTLS: {{ . }}
{{- if eq . "bundle" }}
serverTLSBundleFile: issuers/{{ $.name }}/server.crt
{{- end }}
{{- end }}
{{- end }}

{{- define "step-csi.issuerTrust" -}}
{{- if .issuer.fingerprint -}}
fingerprint: {{ .issuer.fingerprint | quote }}
{{- else -}}
caBundleFile: issuers/{{ .name }}/ca.crt
{{- end }}
{{- end }}

{{- define "step-csi.issuerDuration" -}}
{{- $configured := dict }}
{{- range $key, $value := .duration }}
{{- if $value }}{{ $_ := set $configured $key $value }}{{ end }}
{{- end }}
{{- with $configured -}}
duration:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The roots of an issuer at the registration authority. If another CA signs the
authority's own certificate, the pinned roots of the issuer's CA are named here. */}}
{{- define "step-csi.raIssuerRoots" -}}
{{- $roots := omit (.issuer.roots | default dict) "federation" }}
{{- if and $roots.pinned (ne .name .authority) }}
{{- $roots = merge (include "step-csi.issuerTrust" . | fromYaml) $roots }}
{{- end }}
{{- with $roots -}}
roots:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* roots.refresh is the interval of the node plugins. The registration authority has
an interval of its own. */}}
{{- define "step-csi.issuerRoots" -}}
{{- $roots := .roots | default dict }}
{{- if eq .mode "ra" }}{{ $roots = omit $roots "refresh" }}{{ end }}
{{- with $roots -}}
roots:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What the node plugin adds to the roots of an issuer, in the volumes of pods. */}}
{{- define "step-csi.issuerAnchors" -}}
{{- if (.issuer.additionalRoots | default dict).configMap }}
additionalRootsFile: issuers/{{ .name }}/additional.crt
{{- end }}
{{- if .issuer.publicRoots }}
publicRoots: true
{{- end }}
{{- end }}

{{/* What a policy sets, besides allowShortNames. */}}
{{- define "step-csi.policy" -}}
{{- $set := dict }}
{{- range $key := list "allowSubjectFields" "allowTemplateData" "validations" }}
{{- with get $ $key }}{{ $_ := set $set $key . }}{{ end }}
{{- end }}
{{- with $set }}{{ toYaml . }}{{ end }}
{{- end }}

{{/* The issuer that signs the registration authority's own certificate. */}}
{{- define "step-csi.raIssuer" -}}
{{- $name := .Values.ra.issuer | default (ternary "default" (keys .Values.issuers | sortAlpha | first) (hasKey .Values.issuers "default")) }}
{{- $name }}
{{- end }}

{{/* The files of all issuers, as sources of a projected volume. */}}
{{- define "step-csi.issuerSources" -}}
{{- range $name, $issuer := .Values.issuers }}
{{- range $secret := include "step-csi.provisionerSecrets" (dict "name" $name "provisioner" $issuer.provisioner) | fromYamlArray }}
- secret:
    name: {{ $secret.name }}
    items:
      {{- range $secret.files }}
      - key: {{ .key }}
        path: issuers/{{ $name }}/{{ .file }}
      {{- end }}
{{- end }}
{{- with include "step-csi.rootSource" (dict "name" $name "issuer" $issuer) }}
{{ . }}
{{- end }}
{{- if eq ($issuer.serverTLS | default "") "bundle" }}
{{- $bundle := $issuer.serverTLSBundle | default dict }}
- configMap:
    name: {{ $bundle.configMap }}
    items:
      - key: {{ $bundle.key | default "ca.crt" }}
        path: issuers/{{ $name }}/server.crt
{{- end }}
{{- end }}
{{- end }}

{{/* The environment variables by which connections choose their proxy. The kubelet
replaces the address of the API server. */}}
{{- define "step-csi.proxyEnv" -}}
{{- with .Values.proxy.url -}}
- {name: HTTPS_PROXY, value: {{ . | quote }}}
- name: NO_PROXY
  value: {{ concat $.Values.proxy.noProxy (list ".svc" (printf ".%s" $.Values.clusterDomain) "$(KUBERNETES_SERVICE_HOST)") | join "," | quote }}
{{- end }}
{{- end }}

{{/* The root of one issuer, unless its fingerprint is configured. */}}
{{- define "step-csi.rootSource" -}}
{{- if not .issuer.fingerprint }}
{{- $bundle := .issuer.caBundle | default dict -}}
- {{ ternary "secret" "configMap" (not (empty $bundle.secret)) }}:
    name: {{ $bundle.secret | default $bundle.configMap }}
    items:
      - key: {{ $bundle.key }}
        path: issuers/{{ .name }}/ca.crt
{{- end }}
{{- end }}
