package chart

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// Values that cannot work are refused with these sentences, all at once.
func TestFaults(t *testing.T) {
	for _, c := range []struct {
		values string
		faults []string
	}{
		{`{kubeletDir: x, driverName: X, issuers: {default: {url: "http://ca"}}}`, []string{
			`driverName: "X" is not a DNS name, such as csi.step-ca.io; write it in lower case`,
			`kubeletDir: "x" is not an absolute path, such as /var/lib/kubelet; write the kubelet's --root-dir`,
			`issuers.default.url: "http://ca" is not the URL of a CA, such as https://ca.example.com:9000 or https://[fd00::1]:9000; step-ca serves only https: write https:// instead of http://`,
		}},
		{`image: {repository: "https://ghcr.io/flexstack/step-csi"}`, []string{
			`image.repository: "https://ghcr.io/flexstack/step-csi" is not the repository of an image, such as ghcr.io/flexstack/step-csi; write it without a scheme and with single slashes`,
		}},
		{`image: {repository: "ghcr.io/flexstack/step-csi:0.1.0"}`, []string{
			`image.repository: "ghcr.io/flexstack/step-csi:0.1.0" is not the repository of an image, such as ghcr.io/flexstack/step-csi; image.tag has the part after the colon`,
		}},
		{`image: {repository: "ghcr.io/flexstack/step-csi@sha256:abc"}`, []string{
			`image.repository: "ghcr.io/flexstack/step-csi@sha256:abc" is not the repository of an image, such as ghcr.io/flexstack/step-csi; image.digest has the part after the @`,
		}},
		{`image: {repository: GHCR.io/x}`, []string{
			`image.repository: "GHCR.io/x" is not the repository of an image, such as ghcr.io/flexstack/step-csi; write it in lower case`,
		}},
		{`image: {repository: ""}`, []string{
			`image.repository: "" is not the repository of an image, such as ghcr.io/flexstack/step-csi`,
		}},
		{`image: {repository: "ghcr.io/a b"}`, []string{
			`image.repository: "ghcr.io/a b" is not the repository of an image, such as ghcr.io/flexstack/step-csi`,
		}},
		{`image: {tag: "1@sha256:abc"}`, []string{
			`image.tag: "1@sha256:abc" is not the tag of an image, such as 0.1.0; image.digest has the digest`,
		}},
		{`image: {tag: "-1"}`, []string{
			`image.tag: "-1" is not the tag of an image, such as 0.1.0`,
		}},
		{`image: {digest: "sha256:abc"}`, []string{
			`image.digest: "sha256:abc" is not the digest of an image, which is sha256:<64 hexadecimal digits in lower case>`,
		}},
		{`image: {digest: ` + fingerprint + `}`, []string{
			`image.digest: "` + fingerprint + `" is not the digest of an image, which is sha256:<64 hexadecimal digits in lower case>; write sha256: in front of it`,
		}},
		{`image: {digest: "x@sha256:` + fingerprint + `"}`, []string{
			`image.digest: "x@sha256:` + fingerprint + `" is not the digest of an image, which is sha256:<64 hexadecimal digits in lower case>; write only the part after the @`,
		}},
		{`imagePullSecrets: [{name: My_Secret}]`, []string{
			`imagePullSecrets[0].name: "My_Secret" is not the name of a Kubernetes object; write it in lower case`,
		}},
		{`driverName: CSI.example.com`, []string{
			`driverName: "CSI.example.com" is not a DNS name, such as csi.step-ca.io; write it in lower case`,
		}},
		{`driverName: csi_driver`, []string{
			`driverName: "csi_driver" is not a DNS name, such as csi.step-ca.io; use lower-case letters, digits, "-" and "."`,
		}},
		{`driverName: -csi`, []string{
			`driverName: "-csi" is not a DNS name, such as csi.step-ca.io; begin and end each part with a letter or a digit`,
		}},
		{`driverName: ""`, []string{
			`driverName: "" is not a DNS name, such as csi.step-ca.io`,
		}},
		{`driverName: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa`, []string{
			`driverName: "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"… has 80 characters; 63 are allowed`,
		}},
		{`clusterDomain: Cluster.Local`, []string{
			`clusterDomain: "Cluster.Local" is not a DNS name, such as cluster.local; write it in lower case`,
		}},
		{`clusterDomain: cluster.local.`, []string{
			`clusterDomain: "cluster.local." is not a DNS name, such as cluster.local; begin and end each part with a letter or a digit`,
		}},
		{`trustDomain: spiffe://example.com`, []string{
			`trustDomain: "spiffe://example.com" is not a trust domain of SPIFFE, such as example.com; write only the part between spiffe:// and the next slash`,
		}},
		{`trustDomain: Example.com`, []string{
			`trustDomain: "Example.com" is not a trust domain of SPIFFE, such as example.com; write it in lower case`,
		}},
		{`kubeletDir: var/lib/kubelet`, []string{
			`kubeletDir: "var/lib/kubelet" is not an absolute path, such as /var/lib/kubelet; write the kubelet's --root-dir`,
		}},
		{`kubeletDir: ""`, []string{
			`kubeletDir: "" is not an absolute path, such as /var/lib/kubelet; write the kubelet's --root-dir`,
		}},
		{`kubeletDir: /`, []string{
			`kubeletDir: "/" is not an absolute path, such as /var/lib/kubelet; write the kubelet's --root-dir`,
		}},
		{`kubeletDir: /var/../..`, []string{
			`kubeletDir: "/var/../.." is not an absolute path, such as /var/lib/kubelet; write the kubelet's --root-dir`,
		}},
		{`kubeletDir: "/var/lib/my kubelet"`, []string{
			`kubeletDir: "/var/lib/my kubelet" is not an absolute path, such as /var/lib/kubelet; write the kubelet's --root-dir`,
		}},
		{`renewal: {minInterval: "60"}`, []string{
			`renewal.minInterval: "60" is not a duration, such as 24h, 90m or 1h30m; add the unit: h, m or s`,
		}},
		{`renewal: {minInterval: "0s"}`, []string{
			`renewal.minInterval: "0s" is shorter than a second`,
		}},
		{`renewal: {minInterval: ""}`, []string{
			`renewal.minInterval: "" is not a duration, such as 24h, 90m or 1h30m`,
		}},
		{`serviceAccount: {name: My}`, []string{
			`serviceAccount.name: "My" is not the name of a Kubernetes object; write it in lower case`,
		}},
		{`seLinuxContext: '"a:b:c:s0"'`, []string{
			`seLinuxContext: "\"a:b:c:s0\"" is not an SELinux context, such as system_u:object_r:container_file_t:s0; remove the quotation marks`,
		}},
		{`seLinuxContext: container_file_t`, []string{
			`seLinuxContext: "container_file_t" is not an SELinux context, such as system_u:object_r:container_file_t:s0; write the user, the role, the type and the level, not the type alone`,
		}},
		{`ra: {existing: {release: A_B}}`, []string{
			`ra.existing.release: "A_B" is not the name of a Kubernetes object; write it in lower case`,
		}},
		{`ra: {existing: {release: other, fullname: A}}`, []string{
			`ra.existing.fullname: "A" is not the name of a Kubernetes object; write it in lower case`,
		}},
		{`ra: {serviceAccount: {name: a/b}}`, []string{
			`ra.serviceAccount.name: "a/b" is not the name of a Kubernetes object; use lower-case letters, digits, "-" and "."`,
		}},
		{`ra: {priorityClassName: High}`, []string{
			`ra.priorityClassName: "High" is not the name of a Kubernetes object; write it in lower case`,
		}},
		{`priorityClassName: a b`, []string{
			`priorityClassName: "a b" is not the name of a Kubernetes object; use lower-case letters, digits, "-" and "."`,
		}},
		{`ra: {podDisruptionBudget: {maxUnavailable: 0}}`, []string{
			`ra.podDisruptionBudget.maxUnavailable: "0" is not a number above zero, or a percentage from 1% to 100%`,
		}},
		{`updateStrategy: {rollingUpdate: {maxUnavailable: 0}}`, []string{
			`updateStrategy.rollingUpdate.maxUnavailable: "0" is not a number above zero, or a percentage from 1% to 100%`,
		}},
		{`updateStrategy: {rollingUpdate: {maxUnavailable: 0%}}`, []string{
			`updateStrategy.rollingUpdate.maxUnavailable: "0%" is not a number above zero, or a percentage from 1% to 100%`,
		}},
		{`updateStrategy: {rollingUpdate: {maxUnavailable: 101%}}`, []string{
			`updateStrategy.rollingUpdate.maxUnavailable: "101%" is not a number above zero, or a percentage from 1% to 100%`,
		}},
		{`proxy: {url: "proxy.example.com:3128"}`, []string{
			`proxy.url: "proxy.example.com:3128" is not the URL of a proxy, such as http://proxy.example.com:3128; write http:// in front of it`,
		}},
		{`proxy: {url: "http://proxy.example.com/x"}`, []string{
			`proxy.url: "http://proxy.example.com/x" is not the URL of a proxy, such as http://proxy.example.com:3128; remove the path`,
		}},
		{`proxy: {noProxy: ["a.example.com,b.example.com"]}`, []string{
			`proxy.noProxy[0]: "a.example.com,b.example.com" is not one host, domain or address range; write several as a list`,
		}},
		{`proxy: {noProxy: [""]}`, []string{
			`proxy.noProxy[0]: "" is not one host, domain or address range`,
		}},
		{`monitoring: {podMonitor: {interval: "30"}}`, []string{
			`monitoring.podMonitor.interval: "30" is not a duration of Prometheus, such as 30s or 1m; add the unit: h, m, s or ms`,
		}},
		{`monitoring: {podMonitor: {interval: 1 minute}}`, []string{
			`monitoring.podMonitor.interval: "1 minute" is not a duration of Prometheus, such as 30s or 1m`,
		}},
		{`nameOverride: a.b`, []string{
			`nameOverride: "a.b" is not part of the names of objects: lower-case letters, digits and "-", with a letter or a digit at both ends`,
		}},
		{`fullnameOverride: -a`, []string{
			`fullnameOverride: "-a" is not part of the names of objects: lower-case letters, digits and "-", with a letter or a digit at both ends`,
		}},
		{`extraArgs: [v=4]`, []string{
			`extraArgs[0]: "v=4" is not a flag, such as --v=4`,
		}},
		{`ra: {extraArgs: [--V=4]}`, []string{
			`ra.extraArgs[0]: "--V=4" is not a flag, such as --v=4`,
		}},
		{`networkPolicy: {nodeCIDRs: [192.0.2.1]}`, []string{
			`networkPolicy.nodeCIDRs[0]: "192.0.2.1" is not an address range, such as 192.0.2.0/24 or 2001:db8::/32; for one address, add /32`,
		}},
		{`networkPolicy: {nodeCIDRs: ["2001:db8::1"]}`, []string{
			`networkPolicy.nodeCIDRs[0]: "2001:db8::1" is not an address range, such as 192.0.2.0/24 or 2001:db8::/32; for one address, add /128`,
		}},
		{`networkPolicy: {nodeCIDRs: [nodes/24]}`, []string{
			`networkPolicy.nodeCIDRs[0]: "nodes/24" is not an address range, such as 192.0.2.0/24 or 2001:db8::/32`,
		}},
		{`networkPolicy: {dnsPorts: []}`, []string{
			`networkPolicy.dnsPorts: the list is empty; with restrictEgress, it would allow every port. Name at least one port`,
		}},
		{`networkPolicy: {caPorts: []}`, []string{
			`networkPolicy.caPorts: the list is empty; with restrictEgress, it would allow every port. Name at least one port`,
		}},
		{`networkPolicy: {apiServerPorts: []}`, []string{
			`networkPolicy.apiServerPorts: the list is empty; with restrictEgress, it would allow every port. Name at least one port`,
		}},
		{`hostNetwork: true`, []string{
			`networkPolicy.nodeCIDRs: with hostNetwork, node plugins call the registration authority from the addresses of their nodes; list the address ranges of your nodes, such as [192.0.2.0/24], or set networkPolicy.enabled to false`,
		}},
		{`policy: {validations: [{expression: ""}]}`, []string{
			`policy.validations[0].expression: "" is not a CEL expression`,
		}},
		{`issuers: {default: {policy: {validations: [{expression: ""}]}}}`, []string{
			`issuers.default.policy.validations[0].expression: "" is not a CEL expression`,
		}},
		{`policy: {allowSubjectFields: [organizations, organizational-units]}`, []string{
			`policy.allowSubjectFields[1]: "organizational-units" is not organizations, organizationalUnits, countries, provinces, localities, streetAddresses or postalCodes`,
		}},
		{`issuers: {default: {policy: {allowSubjectFields: [O]}}}`, []string{
			`issuers.default.policy.allowSubjectFields[0]: "O" is not organizations, organizationalUnits, countries, provinces, localities, streetAddresses or postalCodes`,
		}},
		{`issuers: {default: null}`, []string{
			`issuers: there is none; configure at least one issuer`,
		}},
		{`issuers: {"../x": {url: "https://ca.example.com", fingerprint: ` + fingerprint + `, provisioner: {type: jwk, name: a, keySecret: {name: s, key: k}}}}`, []string{
			`issuers: "../x" is not the name of an issuer: lower-case letters, digits and "-", with a letter or a digit at both ends`,
		}},
		{`issuers: {default: {url: "ca.example.com"}}`, []string{
			`issuers.default.url: "ca.example.com" is not the URL of a CA, such as https://ca.example.com:9000 or https://[fd00::1]:9000; write https:// in front of it`,
		}},
		{`issuers: {default: {url: "ca.example.com:9000"}}`, []string{
			`issuers.default.url: "ca.example.com:9000" is not the URL of a CA, such as https://ca.example.com:9000 or https://[fd00::1]:9000; write https:// in front of it`,
		}},
		{`issuers: {default: {url: "http://ca.example.com"}}`, []string{
			`issuers.default.url: "http://ca.example.com" is not the URL of a CA, such as https://ca.example.com:9000 or https://[fd00::1]:9000; step-ca serves only https: write https:// instead of http://`,
		}},
		{`issuers: {default: {url: " https://ca.example.com"}}`, []string{
			`issuers.default.url: " https://ca.example.com" is not the URL of a CA, such as https://ca.example.com:9000 or https://[fd00::1]:9000; remove the white space`,
		}},
		{`issuers: {default: {url: "https://ca.example.com/acme/acme"}}`, []string{
			`issuers.default.url: "https://ca.example.com/acme/acme" is not the URL of a CA, such as https://ca.example.com:9000 or https://[fd00::1]:9000; write only https://<host>:<port>, without a path and a query`,
		}},
		{`issuers: {default: {url: "https://user:password@ca.example.com"}}`, []string{
			`issuers.default.url: "https://…@ca.example.com" is not the URL of a CA, such as https://ca.example.com:9000 or https://[fd00::1]:9000; remove the user and the password`,
		}},
		{`issuers: {default: {url: "https://"}}`, []string{
			`issuers.default.url: "https://" is not the URL of a CA, such as https://ca.example.com:9000 or https://[fd00::1]:9000`,
		}},
		{`issuers: {default: {url: "ldap://ca.example.com"}}`, []string{
			`issuers.default.url: "ldap://ca.example.com" is not the URL of a CA, such as https://ca.example.com:9000 or https://[fd00::1]:9000`,
		}},
		{`issuers: {default: {urls: ["https://ca-0.example.com", "ca-1"]}}`, []string{
			`issuers.default.urls[1]: "ca-1" is not the URL of a CA, such as https://ca.example.com:9000 or https://[fd00::1]:9000; write https:// in front of it`,
		}},
		{`issuers: {default: {fingerprint: abcdef}}`, []string{
			`issuers.default.fingerprint: "abcdef" is not the SHA-256 of a root, which has 64 hexadecimal digits; it has fewer digits: run step certificate fingerprint root_ca.crt, and copy all that it prints`,
		}},
		{`issuers: {default: {fingerprint: "84a06f1a9c0b8f1c4f2f6e0d1b5e0a3f7c7d3b2a"}}`, []string{
			`issuers.default.fingerprint: "84a06f1a9c0b8f1c4f2f6e0d1b5e0a3f7c7d3b2a" is not the SHA-256 of a root, which has 64 hexadecimal digits; it has 40 digits, like a SHA-1: run step certificate fingerprint root_ca.crt`,
		}},
		{`issuers: {default: {fingerprint: "84a06f1a9c0b8f1c4f2f6e0d1b5e0a3f"}}`, []string{
			`issuers.default.fingerprint: "84a06f1a9c0b8f1c4f2f6e0d1b5e0a3f" is not the SHA-256 of a root, which has 64 hexadecimal digits; it has 32 digits, like an MD5: run step certificate fingerprint root_ca.crt`,
		}},
		{`issuers: {default: {fingerprint: "` + fingerprint + `00"}}`, []string{
			`issuers.default.fingerprint: "` + fingerprint + `00" is not the SHA-256 of a root, which has 64 hexadecimal digits; it has more digits: separate several fingerprints by commas`,
		}},
		{`issuers: {default: {fingerprint: "` + fingerprint + `,"}}`, []string{
			`issuers.default.fingerprint: "" is not the SHA-256 of a root, which has 64 hexadecimal digits; remove the comma`,
		}},
		{`issuers: {default: {fingerprint: "the root"}}`, []string{
			`issuers.default.fingerprint: "the root" is not the SHA-256 of a root, which has 64 hexadecimal digits; run step certificate fingerprint root_ca.crt`,
		}},
		{`issuers: {default: {caBundle: {configMap: ""}}}`, []string{
			`issuers.default: give the fingerprint of the CA's root (step certificate fingerprint root_ca.crt), or its caBundle (configMap or secret, and key)`,
		}},
		{`issuers: {default: {caBundle: {configMap: Roots}}}`, []string{
			`issuers.default.caBundle.configMap: "Roots" is not the name of a Kubernetes object; write it in lower case`,
		}},
		{`issuers: {default: {caBundle: {secret: Roots}}}`, []string{
			`issuers.default.caBundle.secret: "Roots" is not the name of a Kubernetes object; write it in lower case`,
		}},
		{`issuers: {default: {caBundle: {key: a/b}}}`, []string{
			`issuers.default.caBundle.key: "a/b" is not a key of a ConfigMap or Secret: letters, digits, "-", "_" and "."`,
		}},
		{`issuers: {default: {serverTLS: bundle, serverTLSBundle: {configMap: ""}}}`, []string{
			`issuers.default.serverTLSBundle.configMap: name the ConfigMap with the roots that verify the server`,
		}},
		{`issuers: {default: {serverTLSBundle: {key: ""}}}`, []string{
			`issuers.default.serverTLSBundle.key: "" is not a key of a ConfigMap or Secret: letters, digits, "-", "_" and "."`,
		}},
		{`issuers: {default: {additionalRoots: {configMap: My_Roots, key: "a/b"}}}`, []string{
			`issuers.default.additionalRoots.configMap: "My_Roots" is not the name of a Kubernetes object; write it in lower case`,
			`issuers.default.additionalRoots.key: "a/b" is not a key of a ConfigMap or Secret: letters, digits, "-", "_" and "."`,
		}},
		{`issuers: {default: {additionalRoots: {configMap: roots, key: "..data"}, caBundle: {key: "."}}}`, []string{
			`issuers.default.additionalRoots.key: "..data" is not a key of a ConfigMap or Secret: letters, digits, "-", "_" and "."; it can begin with one ".", and cannot be "."`,
			`issuers.default.caBundle.key: "." is not a key of a ConfigMap or Secret: letters, digits, "-", "_" and "."; it can begin with one ".", and cannot be "."`,
		}},
		{`issuers: {own: {url: "https://ca", fingerprint: ` + fingerprint + `, provisioner: {type: jwk, name: p, passwordSecret: {name: s, key: k}}, additionalRoots: {key: ca.crt}}}`, []string{
			`issuers.own.additionalRoots.configMap: name the ConfigMap with the roots to add, or remove additionalRoots`,
		}},
		{`issuers: {default: {duration: {max: "24"}}}`, []string{
			`issuers.default.duration.max: "24" is not a duration, such as 24h, 90m or 1h30m; add the unit: h, m or s`,
		}},
		{`issuers: {default: {duration: {default: 1d}}}`, []string{
			`issuers.default.duration.default: "1d" is not a duration, such as 24h, 90m or 1h30m; the units are h, m and s: two days are 48h`,
		}},
		{`issuers: {default: {duration: {min: 500ms}}}`, []string{
			`issuers.default.duration.min: "500ms" is not a duration, such as 24h, 90m or 1h30m; the units are h, m and s`,
		}},
		{`issuers: {default: {duration: {min: "0h"}}}`, []string{
			`issuers.default.duration.min: "0h" is shorter than a second`,
		}},
		{`issuers: {default: {duration: {min: "1 h"}}}`, []string{
			`issuers.default.duration.min: "1 h" is not a duration, such as 24h, 90m or 1h30m; the units are h, m and s`,
		}},
		{`issuers: {default: {duration: {default: 24h, max: 1h30m}}}`, []string{
			`issuers.default.duration.default: 24h is longer than duration.max, 1h30m; change one of them`,
		}},
		{`issuers: {default: {duration: {default: 90s, min: 2m}}}`, []string{
			`issuers.default.duration.min: 2m is longer than duration.default, 90s; change one of them`,
		}},
		{`issuers: {default: {duration: {max: 1h, min: 61m}}}`, []string{
			`issuers.default.duration.min: 61m is longer than duration.max, 1h; change one of them`,
		}},
		{`issuers: {default: {roots: {refresh: ""}}}`, []string{
			`issuers.default.roots.refresh: "" is not a duration, such as 24h, 90m or 1h30m`,
		}},
		{`issuers: {default: {provisioner: {name: ""}}}`, []string{
			`issuers.default.provisioner.name: name the provisioner of the CA (step ca provisioner list)`,
		}},
		{`issuers: {default: {provisioner: {passwordSecret: {name: A}}}}`, []string{
			`issuers.default.provisioner.passwordSecret.name: "A" is not the name of a Kubernetes object; write it in lower case`,
		}},
		{`issuers: {default: {provisioner: {passwordSecret: {key: ""}}}}`, []string{
			`issuers.default.provisioner.passwordSecret.key: "" is not a key of a ConfigMap or Secret: letters, digits, "-", "_" and "."`,
		}},
		{`issuers: {default: {provisioner: {keySecret: {key: ""}}}}`, []string{
			`issuers.default.provisioner.keySecret.key: "" is not a key of a ConfigMap or Secret: letters, digits, "-", "_" and "."`,
		}},
		{`issuers: {default: {provisioner: {certificateSecret: {name: s}}}}`, []string{
			`issuers.default.provisioner.certificateSecret: is for the type x5c; set the type, or use passwordSecret or keySecret`,
		}},
		{`issuers: {default: {provisioner: {type: x5c}}}`, []string{
			`issuers.default.provisioner.certificateSecret.name: name the Secret with the certificate and the private key that sign tokens of the provisioner`,
		}},
		{`issuers: {default: {provisioner: {type: x5c, kid: k, certificateSecret: {name: s}}}}`, []string{
			`issuers.default.provisioner: passwordSecret, keySecret and kid are for the type jwk; a provisioner of the type x5c has certificateSecret`,
		}},
		{`issuers: {default: {provisioner: {type: x5c, passwordSecret: {name: s}, certificateSecret: {name: s}}}}`, []string{
			`issuers.default.provisioner: passwordSecret, keySecret and kid are for the type jwk; a provisioner of the type x5c has certificateSecret`,
		}},
		{`issuers: {default: {provisioner: {type: x5c, certificateSecret: {name: s, certificate: "a b"}}}}`, []string{
			`issuers.default.provisioner.certificateSecret.certificate: "a b" is not a key of a ConfigMap or Secret: letters, digits, "-", "_" and "."`,
		}},
		{`issuers: {second: {}}`, []string{
			`issuers.second.url: set the URL of the CA, such as https://ca.example.com:9000`,
			`issuers.second: give the fingerprint of the CA's root (step certificate fingerprint root_ca.crt), or its caBundle (configMap or secret, and key)`,
			`issuers.second.provisioner.name: name the provisioner of the CA (step ca provisioner list)`,
			`issuers.second.provisioner.type: set the type of the provisioner, jwk or x5c`,
		}},
		{`issuers: {second: {url: "https://ca.example.com", fingerprint: ` + fingerprint + `, provisioner: {type: jwk, name: a}}}`, []string{
			`issuers.second.provisioner.passwordSecret: name the Secret with the password of the provisioner's key, or set keySecret if the CA does not keep this key`,
		}},
		{`issuers: {second: {url: "https://ca.example.com", fingerprint: ` + fingerprint + `, provisioner: {type: jwk, name: a, passwordSecret: {name: s}}}}`, []string{
			`issuers.second.provisioner.passwordSecret.key: name the key in the Secret, such as password`,
		}},
		{`issuers: {second: {url: "https://ca.example.com", fingerprint: ` + fingerprint + `, provisioner: {type: jwk, name: a, keySecret: {name: s}}}}`, []string{
			`issuers.second.provisioner.keySecret.key: name the key in the Secret, such as key`,
		}},
		{`issuers: {second: {url: "https://ca.example.com", fingerprint: ` + fingerprint + `, caBundle: {configMap: c, key: k}, provisioner: {type: jwk, name: a, keySecret: {name: s, key: k}}}}`, []string{
			`issuers.second: fingerprint and caBundle are both set; remove one of them`,
		}},
		{`issuers: {second: {url: "https://ca.example.com", caBundle: {configMap: c, secret: s, key: k}, provisioner: {type: jwk, name: a, keySecret: {name: s, key: k}}}}`, []string{
			`issuers.second.caBundle: configMap and secret are both set; remove one of them`,
		}},
		{`issuers: {second: {url: "https://ca.example.com", caBundle: {configMap: c}, provisioner: {type: jwk, name: a, keySecret: {name: s, key: k}}}}`, []string{
			`issuers.second.caBundle.key: name the key with the CA's root, such as root_ca.crt`,
		}},
		{`issuers: {second: {url: "https://ca.example.com", fingerprint: ` + fingerprint + `, provisioner: {type: jwk, name: a, passwordSecret: {name: s, key: k}, keySecret: {key: k}}}}`, []string{
			`issuers.second.provisioner.keySecret.name: name the Secret, or remove keySecret`,
		}},
		{`issuers: {second: {url: "https://ca.example.com", fingerprint: ` + fingerprint + `, provisioner: {type: jwk, name: a, passwordSecret: {name: ""}}}}`, []string{
			`issuers.second.provisioner.passwordSecret.name: name the Secret, or remove passwordSecret`,
		}},
		{`issuers: {second: {url: "https://ca.example.com", fingerprint: ` + fingerprint + `, provisioner: {type: jwk, name: a, certificateSecret: {name: s}}}}`, []string{
			`issuers.second.provisioner.certificateSecret: is for the type x5c; set the type, or use passwordSecret or keySecret`,
		}},
		{`ra: {port: 443}`, []string{
			`ra.port: 443 is not a port from 1024 to 65535; lower ports need root, and the registration authority does not run as root`,
		}},
		{`ra: {port: 70000}`, []string{
			`ra.port: 70000 is not a port from 1024 to 65535; lower ports need root, and the registration authority does not run as root`,
		}},
		{`ra: {port: 9808}`, []string{
			`ra.port: ra.port and httpPort are the same, 9808; change one of them`,
		}},
		{`ra: {issuer: edge}`, []string{
			`ra.issuer: "edge" is none of the issuers: default`,
		}},
		{`ra: {serviceAccount: {create: false}}`, []string{
			`ra.serviceAccount.name: name the service account that you have created; it gets the right to create TokenReviews`,
		}},
		{`serviceAccount: {create: false}`, []string{
			`serviceAccount.name: name the service account that you have created; in mode ra, the registration authority recognizes the node plugins by it`,
		}},
		{`ra: {existing: {release: step-csi}}`, []string{
			`ra.existing.release: step-csi is this release; name the release that has the registration authority`,
		}},
		{`ra: {existing: {fullname: x}}`, []string{
			`ra.existing.fullname: set ra.existing.release, too: the release that has the registration authority`,
		}},
		{`{hostNetwork: true, httpPort: 10250, networkPolicy: {nodeCIDRs: [192.0.2.0/24]}}`, []string{
			`httpPort: with hostNetwork, 10250 is a port of the node, and Kubernetes itself uses it; choose another port, such as 9808`,
		}},
		{`proxy: {url: "http://user:password@proxy.example.com/x"}`, []string{
			`proxy.url: "http://…@proxy.example.com/x" is not the URL of a proxy, such as http://proxy.example.com:3128; remove the path`,
		}},
	} {
		path, _, _ := strings.Cut(c.faults[0], ":")
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			if got := faults(t, c.values); !slices.Equal(got, c.faults) {
				t.Errorf("the chart says\n%s\ninstead of\n%s", strings.Join(got, "\n"), strings.Join(c.faults, "\n"))
			}
		})
	}
}

// faults returns the sentences with which the chart refuses the values.
func faults(t *testing.T, values string) []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(file, []byte(values), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := template("--values", file)
	if err == nil {
		t.Fatal("the chart accepts the values")
	}
	_, text, found := strings.Cut(err.Error(), "step-csi cannot work with these values:\n")
	if !found {
		t.Fatal(err)
	}
	text, _, _ = strings.Cut(text, "\n\n")
	var all []string
	for line := range strings.SplitSeq(text, "\n") {
		all = append(all, strings.TrimPrefix(line, "- "))
	}
	return all
}

// What people write differently is accepted, and means the same.
func TestEquivalentValues(t *testing.T) {
	colons := strings.ToUpper(strings.Join(slices.Collect(func(yield func(string) bool) {
		for i := 0; i < len(fingerprint) && yield(fingerprint[i:i+2]); i += 2 {
		}
	}), ":"))
	for _, set := range []string{
		"kubeletDir=/var/lib/kubelet/", "kubeletDir=/var//lib/kubelet", "issuers.second=null",
		"issuers.default.url=", "updateStrategy.rollingUpdate.maxUnavailable=10%",
	} {
		if mustTemplate(t, "--set", set) != mustTemplate(t) {
			t.Errorf("%s changes the objects", set)
		}
	}
	for _, print := range []string{fingerprint, strings.ToUpper(fingerprint), colons, "sha256 Fingerprint=" + colons, fingerprint + ", " + colons, fingerprint + ",\n" + fingerprint + "\n"} {
		values := valueFile(t, "issuers.default.fingerprint", print)
		objects := render(t, "--values", values)
		if err := startAuthority(authorityFiles(t, objects)); !refusedForTheAddress(err) {
			t.Errorf("%q: %v", print, err)
		}
	}
	for _, set := range []string{"default=1.5h,max=90m", "default=60s,min=1m", "default=0.5h,max=3601s,min=29m", "max=,min=100h"} {
		mustTemplate(t, "--set", "issuers.default.duration."+strings.ReplaceAll(set, ",", ",issuers.default.duration."))
	}
}

// The schema has only rules whose refusals read well. Others are sentences of _faults.tpl.
func TestSchemaKeywords(t *testing.T) {
	var schema any
	if err := yaml.UnmarshalStrict([]byte(read(t, chart+"/values.schema.json")), &schema); err != nil {
		t.Fatal(err)
	}
	known := []string{"$schema", "$defs", "$ref", "title", "description", "type", "properties", "additionalProperties",
		"items", "enum", "minimum", "maximum", "exclusiveMinimum", "required", "uniqueItems"}
	seen := 0
	var walk func(path string, node any, names bool)
	walk = func(path string, node any, names bool) {
		switch node := node.(type) {
		case object:
			for key, value := range node {
				if seen++; !names && !slices.Contains(known, key) {
					t.Errorf("%s has the keyword %s: say it by a sentence in _faults.tpl", path, key)
				}
				walk(path+"/"+key, value, !names && (key == "properties" || key == "$defs"))
			}
			if properties := node["properties"]; properties != nil && !names && node["additionalProperties"] != false &&
				!strings.HasSuffix(path, "/items") && path != "" && path != "/properties/global" { // global has the values of other charts, too
				t.Errorf("%s allows misspelt keys", path)
			}
		case []any:
			for _, value := range node {
				walk(path, value, false)
			}
		}
	}
	walk("", schema, false)
	if seen < 300 {
		t.Errorf("saw only %d keys", seen)
	}
}

// Each text in the values is checked: none accepts just anything, except texts that only
// the CA, the pods or people read.
func TestEachTextIsChecked(t *testing.T) {
	anything := []string{
		"issuers.default.provisioner.name", "issuers.default.provisioner.kid",
		"ra.issuer", // one of the issuers
	}
	checked := 0
	eachValue(t, func(path string, value any, _ bool) {
		if _, isText := value.(string); !isText || slices.Contains(anything, path) {
			return
		}
		checked++
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			_, err := template("--values", valueFile(t, path, "Ä b: \"\n"))
			if err == nil {
				t.Fatal("the chart accepts it")
			}
			if text := err.Error(); !strings.Contains(text, "\n- "+path+": ") && !strings.Contains(text, "\n- at '/"+strings.ReplaceAll(path, ".", "/")+"'") {
				t.Error(err)
			}
		})
	})
	if checked < 40 {
		t.Errorf("found only %d texts", checked)
	}
}
