{{/* Prints a line for each value that cannot work: its name, what is given, and what is
expected. values.schema.json checks types, unknown keys and ranges, because its refusals of
these read well. */}}
{{- define "step-csi.faults" -}}
{{- $v := .Values }}
{{- /* A check has the name of the value, the value, and its kind. With "?", it may be empty. */}}
{{- $checks := list
  (list "global.imageRegistry" $v.global.imageRegistry "registry?")
  (list "image.registry" $v.image.registry "registry?")
  (list "image.repository" $v.image.repository "repository")
  (list "image.tag" $v.image.tag "tag?")
  (list "image.digest" $v.image.digest "digest?")
  (list "driverName" $v.driverName "driverName")
  (list "clusterDomain" $v.clusterDomain "domain")
  (list "trustDomain" $v.trustDomain "trustDomain?")
  (list "kubeletDir" $v.kubeletDir "directory")
  (list "renewal.minInterval" $v.renewal.minInterval "duration")
  (list "serviceAccount.name" $v.serviceAccount.name "name?")
  (list "seLinuxContext" $v.seLinuxContext "seLinuxContext?")
  (list "ra.existing.release" $v.ra.existing.release "name?")
  (list "ra.existing.fullname" $v.ra.existing.fullname "name?")
  (list "ra.serviceAccount.name" $v.ra.serviceAccount.name "name?")
  (list "ra.priorityClassName" $v.ra.priorityClassName "name?")
  (list "ra.podDisruptionBudget.maxUnavailable" $v.ra.podDisruptionBudget.maxUnavailable "numberOrPercentage")
  (list "proxy.url" $v.proxy.url "proxyURL?")
  (list "priorityClassName" $v.priorityClassName "name?")
  (list "updateStrategy.rollingUpdate.maxUnavailable" $v.updateStrategy.rollingUpdate.maxUnavailable "numberOrPercentage")
  (list "monitoring.podMonitor.interval" $v.monitoring.podMonitor.interval "interval")
  (list "monitoring.serviceMonitor.interval" $v.monitoring.serviceMonitor.interval "interval")
  (list "monitoring.prometheusRule.thresholds.lifetimeLeft" $v.monitoring.prometheusRule.thresholds.lifetimeLeft "fraction")
  (list "monitoring.prometheusRule.thresholds.refusedRatio" $v.monitoring.prometheusRule.thresholds.refusedRatio "fraction")
  (list "nameOverride" $v.nameOverride "label?")
  (list "fullnameOverride" $v.fullnameOverride "label?")
}}
{{- range $i, $secret := $v.imagePullSecrets }}
{{- $checks = append $checks (list (printf "imagePullSecrets[%d].name" $i) $secret.name "name") }}
{{- end }}
{{- range list
  (list "extraArgs" $v.extraArgs "flag")
  (list "ra.extraArgs" $v.ra.extraArgs "flag")
  (list "proxy.noProxy" $v.proxy.noProxy "host")
  (list "networkPolicy.nodeCIDRs" $v.networkPolicy.nodeCIDRs "cidr")
  (list "policy.allowSubjectFields" $v.policy.allowSubjectFields "subjectField")
}}
{{- $path := index . 0 }}
{{- $kind := index . 2 }}
{{- range $i, $value := index . 1 }}
{{- $checks = append $checks (list (printf "%s[%d]" $path $i) $value $kind) }}
{{- end }}
{{- end }}
{{- range $name, $alert := $v.monitoring.prometheusRule.alerts }}
{{- range $key := list "for" "keep_firing_for" }}
{{- $checks = append $checks (list (printf "monitoring.prometheusRule.alerts.%s.%s" $name $key) (get ($alert | default dict) $key) "alertDuration?") }}
{{- end }}
{{- end }}
{{- range $i, $validation := $v.policy.validations }}
{{- $checks = append $checks (list (printf "policy.validations[%d].expression" $i) $validation.expression "expression") }}
{{- end }}
{{- range $name, $issuer := $v.issuers }}
{{- $checks = append $checks (list "issuers" $name "issuerName") }}
{{- $checks = concat $checks (include "step-csi.issuerChecks" (dict "name" $name "issuer" $issuer) | fromYamlArray) }}
{{- end }}
{{- $kinds := include "step-csi.kinds" . | fromYaml }}
{{- range $checks }}
{{- $kind := get $kinds (trimSuffix "?" (index . 2)) }}
{{- $value := toString (index . 1) }}
{{- $shown := regexReplaceAll "//[^/@]*@" $value "//…@" | trunc 200 | quote }}{{/* without a password */}}
{{- if not (and (eq $value "") (hasSuffix "?" (index . 2))) }}
{{- if and $kind.length (gt (len $value) (int $kind.length)) }}
{{ index . 0 }}: {{ $value | trunc 40 | quote }}… has {{ len $value }} characters; {{ $kind.length }} are allowed
{{- else if not (regexMatch $kind.pattern $value) }}
{{- $hint := "" }}
{{- range $kind.hints }}
{{- if and (not $hint) (regexMatch .pattern $value) }}{{ $hint = printf "; %s" .hint }}{{ end }}
{{- end }}
{{ index . 0 }}: {{ $shown }} is not {{ $kind.expected }}{{ $hint }}
{{- else if and (eq (trimSuffix "?" (index . 2)) "duration") (lt (include "step-csi.seconds" $value | float64) 1.0) }}
{{ index . 0 }}: {{ $shown }} is shorter than a second
{{- end }}
{{- end }}
{{- end }}
{{- range $name, $issuer := $v.issuers }}
{{ include "step-csi.issuerFaults" (dict "name" $name "issuer" $issuer) }}
{{- end }}
{{- if not $v.issuers }}
issuers: there is none; configure at least one issuer
{{- end }}
{{ include "step-csi.podSecurity" . }}
{{- if and .Release.IsUpgrade (not $v.allowDriverChange) }}
{{ include "step-csi.driverChange" (dict "existing" (lookup "apps/v1" "DaemonSet" .Release.Namespace (include "step-csi.fullname" .)) "Values" $v) }}
{{- end }}
{{- if eq $v.mode "ra" }}
{{- if semverCompare "<1.30.0-0" .Capabilities.KubeVersion.Version }}
mode: mode ra needs Kubernetes 1.30 or later, where a token contains the node of its pod, and this cluster has {{ .Capabilities.KubeVersion.Version }}; use mode: node
{{- end }}
{{- if or (lt (int $v.ra.port) 1024) (gt (int $v.ra.port) 65535) }}
ra.port: {{ $v.ra.port }} is not a port from 1024 to 65535; lower ports need root, and the registration authority does not run as root
{{- end }}
{{ include "step-csi.portFaults" . }}
{{- if and $v.ra.issuer (not (hasKey $v.issuers $v.ra.issuer)) }}
ra.issuer: {{ quote $v.ra.issuer }} is none of the issuers: {{ keys $v.issuers | sortAlpha | join ", " }}
{{- end }}
{{- if and $v.ra.existing.fullname (not $v.ra.existing.release) }}
ra.existing.fullname: set ra.existing.release, too: the release that has the registration authority
{{- end }}
{{- if eq $v.ra.existing.release .Release.Name }}
ra.existing.release: {{ .Release.Name }} is this release; name the release that has the registration authority
{{- end }}
{{- if not $v.ra.existing.release }}
{{- if not (or $v.serviceAccount.create $v.serviceAccount.name) }}
serviceAccount.name: name the service account that you have created; in mode ra, the registration authority recognizes the node plugins by it
{{- end }}
{{- if not (or $v.ra.serviceAccount.create $v.ra.serviceAccount.name) }}
ra.serviceAccount.name: name the service account that you have created; it gets the right to create TokenReviews
{{- end }}
{{- end }}
{{- if and $v.networkPolicy.enabled $v.hostNetwork (not $v.networkPolicy.nodeCIDRs) }}
networkPolicy.nodeCIDRs: with hostNetwork, node plugins call the registration authority from the addresses of their nodes; list the address ranges of your nodes, such as [192.0.2.0/24], or set networkPolicy.enabled to false
{{- end }}
{{- if and $v.networkPolicy.enabled $v.networkPolicy.restrictEgress $v.ra.hostNetwork (not $v.hostNetwork) (not $v.networkPolicy.nodeCIDRs) }}
networkPolicy.nodeCIDRs: with ra.hostNetwork and restrictEgress, node plugins call the registration authority at the addresses of its nodes; list the address ranges of these nodes, such as [192.0.2.0/24], or set networkPolicy.restrictEgress to false
{{- end }}
{{- end }}
{{- if and $v.monitoring.podMonitor.enabled $v.monitoring.serviceMonitor.enabled }}
monitoring: podMonitor.enabled and serviceMonitor.enabled are both true, and Prometheus would read all metrics twice; set one of them to false
{{- end }}
{{ include "step-csi.alertFaults" . }}
{{- if and $v.hostNetwork (has (int $v.httpPort) (list 2379 2380 6443 10248 10249 10250 10255 10256 10257 10259)) }}
httpPort: with hostNetwork, {{ int $v.httpPort }} is a port of the node, and Kubernetes itself uses it; choose another port, such as 9808
{{- end }}
{{- range $path, $ports := dict "dnsPorts" $v.networkPolicy.dnsPorts "caPorts" $v.networkPolicy.caPorts "apiServerPorts" $v.networkPolicy.apiServerPorts }}
{{- if not $ports }}
networkPolicy.{{ $path }}: the list is empty; with restrictEgress, it would allow every port. Name at least one port
{{- end }}
{{- end }}
{{- end }}

{{/* The values of one issuer that have a kind, as JSON. */}}
{{- define "step-csi.issuerChecks" -}}
{{- $checks := list }}
{{- $path := printf "issuers.%s" .name }}
{{- range $i, $field := (.issuer.policy | default dict).allowSubjectFields }}
{{- $checks = append $checks (list (printf "%s.policy.allowSubjectFields[%d]" $path $i) $field "subjectField") }}
{{- end }}
{{- range $i, $validation := (.issuer.policy | default dict).validations }}
{{- $checks = append $checks (list (printf "%s.policy.validations[%d].expression" $path $i) $validation.expression "expression") }}
{{- end }}
{{- with .issuer.url }}
{{- $checks = append $checks (list (printf "%s.url" $path) . "url") }}
{{- end }}
{{- with .issuer.fingerprint }}
{{- range splitList "," . }}{{ $checks = append $checks (list (printf "%s.fingerprint" $path) . "fingerprint") }}{{ end }}
{{- end }}
{{- range $i, $url := .issuer.urls }}
{{- $checks = append $checks (list (printf "%s.urls[%d]" $path $i) $url "url") }}
{{- end }}
{{- $provisioner := .issuer.provisioner | default dict }}
{{- $sections := dict
  "caBundle" .issuer.caBundle
  "serverTLSBundle" .issuer.serverTLSBundle
  "additionalRoots" .issuer.additionalRoots
  "provisioner.passwordSecret" $provisioner.passwordSecret
  "provisioner.keySecret" $provisioner.keySecret
  "provisioner.certificateSecret" $provisioner.certificateSecret
  "duration" .issuer.duration
  "roots" (pick (.issuer.roots | default dict) "refresh") }}
{{- $kinds := dict "configMap" "name?" "secret" "name?" "name" "name?" "refresh" "duration" "key" "key" "certificate" "key" "privateKey" "key" }}
{{- range $section, $values := $sections }}
{{- range $key, $value := $values }}
{{- $checks = append $checks (list (printf "%s.%s.%s" $path $section $key) $value (get $kinds $key | default "duration?")) }}
{{- end }}
{{- end }}
{{- toJson $checks }}
{{- end }}

{{/* What is missing in one issuer, or does not fit together. */}}
{{- define "step-csi.issuerFaults" -}}
{{- $path := printf "issuers.%s" .name }}
{{- $own := ne .name "default" }}
{{- if and $own (not (or .issuer.url .issuer.urls)) }}
{{ $path }}.url: set the URL of the CA, such as https://ca.example.com:9000
{{- end }}
{{- $bundle := .issuer.caBundle | default dict }}
{{- if and $own .issuer.fingerprint $bundle }}
{{ $path }}: fingerprint and caBundle are both set; remove one of them
{{- else if not (or .issuer.fingerprint $bundle.secret $bundle.configMap) }}
{{ $path }}: give the fingerprint of the CA's root (step certificate fingerprint root_ca.crt), or its caBundle (configMap or secret, and key)
{{- else if and $own $bundle.secret $bundle.configMap }}
{{ $path }}.caBundle: configMap and secret are both set; remove one of them
{{- else if and (not .issuer.fingerprint) (not $bundle.key) }}
{{ $path }}.caBundle.key: name the key with the CA's root, such as root_ca.crt
{{- end }}
{{- if and (eq (.issuer.serverTLS | default "") "bundle") (not (.issuer.serverTLSBundle | default dict).configMap) }}
{{ $path }}.serverTLSBundle.configMap: name the ConfigMap with the roots that verify the server
{{- end }}
{{- $additional := .issuer.additionalRoots | default dict }}
{{- if and $own $additional (not $additional.configMap) }}
{{ $path }}.additionalRoots.configMap: name the ConfigMap with the roots to add, or remove additionalRoots
{{- end }}
{{- $provisioner := .issuer.provisioner | default dict }}
{{- $password := $provisioner.passwordSecret | default dict }}
{{- $key := $provisioner.keySecret | default dict }}
{{- $certificate := $provisioner.certificateSecret | default dict }}
{{- if not $provisioner.name }}
{{ $path }}.provisioner.name: name the provisioner of the CA (step ca provisioner list)
{{- end }}
{{- if not $provisioner.type }}
{{ $path }}.provisioner.type: set the type of the provisioner, jwk or x5c
{{- else if eq $provisioner.type "x5c" }}
{{- if or $password.name $key.name $provisioner.kid }}
{{ $path }}.provisioner: passwordSecret, keySecret and kid are for the type jwk; a provisioner of the type x5c has certificateSecret
{{- end }}
{{- if not $certificate.name }}
{{ $path }}.provisioner.certificateSecret.name: name the Secret with the certificate and the private key that sign tokens of the provisioner
{{- end }}
{{- else }}
{{- if $certificate.name }}
{{ $path }}.provisioner.certificateSecret: is for the type x5c; set the type, or use passwordSecret or keySecret
{{- else if and $own (not (or $password $key)) }}
{{ $path }}.provisioner.passwordSecret: name the Secret with the password of the provisioner's key, or set keySecret if the CA does not keep this key
{{- end }}
{{- range $secret := list "passwordSecret" "keySecret" }}
{{- $values := get $provisioner $secret }}
{{- if and $own $values (not $values.name) }}
{{ $path }}.provisioner.{{ $secret }}.name: name the Secret, or remove {{ $secret }}
{{- end }}
{{- end }}
{{- if and $own $password.name (not $password.key) }}
{{ $path }}.provisioner.passwordSecret.key: name the key in the Secret, such as password
{{- end }}
{{- if and $own $key.name (not $key.key) }}
{{ $path }}.provisioner.keySecret.key: name the key in the Secret, such as key
{{- end }}
{{- end }}
{{- $duration := .issuer.duration | default dict }}
{{- $seconds := dict }}
{{- range $key := list "default" "max" "min" }}
{{- $value := include "step-csi.seconds" (get $duration $key) | float64 }}
{{- if gt $value 0.0 }}{{ $_ := set $seconds $key $value }}{{ end }}
{{- end }}
{{- range list (list "min" "max") (list "default" "max") (list "min" "default") }}
{{- if and (hasKey $seconds (first .)) (hasKey $seconds (last .)) (gt (get $seconds (first .)) (get $seconds (last .))) }}
{{ $path }}.duration.{{ first . }}: {{ get $duration (first .) }} is longer than duration.{{ last . }}, {{ get $duration (last .) }}; change one of them
{{- end }}
{{- end }}
{{- end }}

{{/* A duration in seconds. */}}
{{- define "step-csi.seconds" -}}
{{- $seconds := 0.0 }}
{{- range regexFindAll "[0-9.]+[hms]" . -1 }}
{{- $seconds = addf $seconds (mulf (regexFind "[0-9.]+" . | float64) (get (dict "h" 3600 "m" 60 "s" 1) (trimAll "0123456789." .))) }}
{{- end }}
{{- $seconds }}
{{- end }}

{{/* The kinds of values: a pattern, what is expected, and hints for what people write
instead. */}}
{{- define "step-csi.kinds" -}}
repository:
  pattern: ^([a-z0-9][a-z0-9._-]*(:[0-9]+)?/)*[a-z0-9][a-z0-9._-]*$
  expected: the repository of an image, such as ghcr.io/flexstack/step-csi
  hints:
    - {pattern: '//', hint: write it without a scheme and with single slashes}
    - {pattern: '@', hint: image.digest has the part after the @}
    - {pattern: ':[^/]*$', hint: image.tag has the part after the colon}
    - {pattern: '[A-Z]', hint: write it in lower case}
registry:
  pattern: ^[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]+)?(/[a-z0-9][a-z0-9._-]*)*$
  expected: a registry, such as registry.example.com:5000 or mirror.example.com/ghcr
  hints:
    - {pattern: '//', hint: write it without a scheme}
    - {pattern: '/$', hint: remove the slash at its end}
tag:
  pattern: ^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$
  expected: the tag of an image, such as 0.1.0
  hints:
    - {pattern: '@|^sha256:', hint: image.digest has the digest}
digest:
  pattern: ^sha256:[0-9a-f]{64}$
  expected: the digest of an image, which is sha256:<64 hexadecimal digits in lower case>
  hints:
    - {pattern: '^[0-9a-f]{64}$', hint: 'write sha256: in front of it'}
    - {pattern: '@', hint: write only the part after the @}
driverName:
  pattern: &domain ^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$
  length: 63
  expected: a DNS name, such as csi.step-ca.io
  hints: &case
    - {pattern: '[A-Z]', hint: write it in lower case}
    - {pattern: '[^-a-z0-9.]', hint: 'use lower-case letters, digits, "-" and "."'}
    - {pattern: '.', hint: 'begin and end each part with a letter or a digit'}
domain:
  pattern: *domain
  length: 253
  expected: a DNS name, such as cluster.local
  hints: *case
name:
  pattern: *domain
  length: 253
  expected: the name of a Kubernetes object
  hints: *case
label:
  pattern: ^[a-z0-9]([-a-z0-9]*[a-z0-9])?$
  length: 63
  expected: 'part of the names of objects: lower-case letters, digits and "-", with a letter or a digit at both ends'
issuerName:
  pattern: ^[a-z0-9]([-a-z0-9]*[a-z0-9])?$
  length: 63
  expected: 'the name of an issuer: lower-case letters, digits and "-", with a letter or a digit at both ends'
trustDomain:
  pattern: ^[a-z0-9._-]*$
  length: 255
  expected: a trust domain of SPIFFE, such as example.com
  hints:
    - {pattern: '/', hint: 'write only the part between spiffe:// and the next slash'}
    - {pattern: '[A-Z]', hint: write it in lower case}
directory:
  pattern: ^(/+[A-Za-z0-9._-]*[A-Za-z0-9_-][A-Za-z0-9._-]*)+/*$
  expected: an absolute path, such as /var/lib/kubelet; write the kubelet's --root-dir
key:
  pattern: ^\.?[-_a-zA-Z0-9][-._a-zA-Z0-9]*$
  length: 253
  expected: 'a key of a ConfigMap or Secret: letters, digits, "-", "_" and "."'
  hints:
    - {pattern: '^\.', hint: 'it can begin with one ".", and cannot be "."'}
url:
  pattern: ^https://[^/\s?#@]+/?$
  expected: the URL of a CA, such as https://ca.example.com:9000 or https://[fd00::1]:9000
  hints:
    - {pattern: '\s', hint: remove the white space}
    - {pattern: '^http:', hint: 'step-ca serves only https: write https:// instead of http://'}
    - {pattern: '^[^:/]+(:[0-9]+)?/?$', hint: 'write https:// in front of it'}
    - {pattern: '@', hint: 'remove the user and the password'}
    - {pattern: '^https://.+[/?#]', hint: 'write only https://<host>:<port>, without a path and a query'}
fingerprint:
  # openssl x509 -fingerprint prints "sha256 Fingerprint=84:A0:…".
  pattern: ^([^=]*=)?[\s:-]*([0-9a-fA-F][\s:-]*){64}$
  expected: the SHA-256 of a root, which has 64 hexadecimal digits
  hints:
    - {pattern: '^([^=]*=)?[\s:-]*([0-9a-fA-F][\s:-]*){40}$', hint: 'it has 40 digits, like a SHA-1: run step certificate fingerprint root_ca.crt'}
    - {pattern: '^([^=]*=)?[\s:-]*([0-9a-fA-F][\s:-]*){32}$', hint: 'it has 32 digits, like an MD5: run step certificate fingerprint root_ca.crt'}
    - {pattern: '^\s*$', hint: remove the comma}
    - {pattern: '^([^=]*=)?[\s:-]*([0-9a-fA-F][\s:-]*){65,}$', hint: 'it has more digits: separate several fingerprints by commas'}
    - {pattern: '^([^=]*=)?[\s:-]*([0-9a-fA-F][\s:-]*){1,63}$', hint: 'it has fewer digits: run step certificate fingerprint root_ca.crt, and copy all that it prints'}
    - {pattern: '.', hint: 'run step certificate fingerprint root_ca.crt'}
duration:
  pattern: ^([0-9]+(\.[0-9]+)?[hms])+$
  expected: a duration, such as 24h, 90m or 1h30m
  hints:
    - {pattern: '^[0-9.]+$', hint: 'add the unit: h, m or s'}
    - {pattern: '[0-9](d|w|y)', hint: 'the units are h, m and s: two days are 48h'}
    - {pattern: '.', hint: 'the units are h, m and s'}
interval:
  pattern: ^([0-9]+(ms|[smh]))+$
  expected: a duration of Prometheus, such as 30s or 1m
  hints:
    - {pattern: '^[0-9.]+$', hint: 'add the unit: h, m, s or ms'}
alertDuration:
  pattern: ^([0-9]+(ms|[smhdwy]))+$
  expected: a duration of Prometheus, such as 15m or 1h
  hints:
    - {pattern: '^[0-9.]+$', hint: 'add the unit: d, h, m or s'}
fraction:
  pattern: ^0(\.[0-9]+)?$
  expected: a number below 1, such as 0.2
  hints:
    - {pattern: '%', hint: 'write 20% as 0.2'}
    - {pattern: '^[1-9][0-9]*$', hint: 'write 20 percent as 0.2'}
seLinuxContext:
  pattern: ^[^\s:'"]+:[^\s:'"]+:[^\s:'"]+(:[^\s'"]+)?$
  length: 255
  expected: an SELinux context, such as system_u:object_r:container_file_t:s0
  hints:
    - {pattern: '[''"]', hint: remove the quotation marks}
    - {pattern: '^[^:]*$', hint: 'write the user, the role, the type and the level, not the type alone'}
numberOrPercentage:
  pattern: ^([1-9][0-9]*|([1-9][0-9]?|100)%)$
  expected: a number above zero, or a percentage from 1% to 100%
proxyURL:
  pattern: ^(https?|socks5h?)://[^/\s]+/?$
  expected: the URL of a proxy, such as http://proxy.example.com:3128
  hints:
    - {pattern: '^[^:/]+(:[0-9]+)?/?$', hint: 'write http:// in front of it'}
    - {pattern: '://[^/]+/.', hint: 'remove the path'}
host:
  pattern: ^[^\s,]+$
  expected: one host, domain or address range
  hints:
    - {pattern: ',', hint: write several as a list}
cidr:
  pattern: ^[0-9a-fA-F.:]+/[0-9]+$
  expected: an address range, such as 192.0.2.0/24 or 2001:db8::/32
  hints:
    - {pattern: '^[0-9.]+$', hint: 'for one address, add /32'}
    - {pattern: '^[0-9a-fA-F:]+$', hint: 'for one address, add /128'}
flag:
  pattern: ^--?[a-z]
  expected: a flag, such as --v=4
subjectField:
  pattern: ^(organizations|organizationalUnits|countries|provinces|localities|streetAddresses|postalCodes)$
  expected: organizations, organizationalUnits, countries, provinces, localities, streetAddresses or postalCodes
expression:
  pattern: .
  expected: a CEL expression
{{- end }}
