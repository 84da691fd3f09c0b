{{- $subject := dict "commonName" .Subject.CommonName }}
{{- with .Insecure.User }}{{ with .subject }}
{{- $subject = merge $subject (pick . "organization" "organizationalUnit" "country" "province" "locality" "streetAddress" "postalCode") }}
{{- end }}{{ end -}}
{
  "subject": {{ toJson $subject }},
  "sans": {{ toJson .SANs }},
{{- if typeIs "*rsa.PublicKey" .Insecure.CR.PublicKey }}
  "keyUsage": ["keyEncipherment", "digitalSignature"],
{{- else }}
  "keyUsage": ["digitalSignature"],
{{- end }}
  "extKeyUsage": ["serverAuth", "clientAuth"]
}
