package programs

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"testing"
)

// A pod has three volumes, with different issuers, formats and owners. All formats of a
// volume are of one certificate, before and after a renewal. The volumes are independent of
// each other.
func TestSeveralVolumesInOnePod(t *testing.T) {
	t.Parallel()
	w := newPods(t)
	as := account{uid: 10001, fsGroup: 10001}
	directory := w.directory(as)
	publish := func(name string, attributes map[string]string) *volume {
		t.Helper()
		p := as.pod("app-0", attributes)
		p.Volume = name
		return w.publish(p)
	}
	plain := publish("plain", map[string]string{
		"service-names": "web", "bundle-file": "bundle.pem", "certificate-der-file": "tls.der",
	})
	java := publish("java", map[string]string{
		"issuer": "other", "service-names": "app", "key-type": "rsa-2048", "owner-uid": "10001", "privatekey-mode": "0400",
		"pkcs12-file": "keystore.p12", "jks-file": "keystore.jks",
	})
	trusting := publish("trust", map[string]string{
		"issuer": "other", "trust-only": "true", "ca-directory": "certs", "pkcs12-truststore-file": "truststore.p12",
	})

	// oneCertificate checks that other programs find the same certificate in each format.
	oneCertificate := func(v *volume, commands ...[]string) *x509.Certificate {
		t.Helper()
		leaf := v.leaf()
		for _, command := range commands {
			out := mustRun(t, as, directory, command...)
			block, _ := pem.Decode([]byte(out))
			if block == nil || !bytes.Equal(block.Bytes, leaf.Raw) {
				t.Errorf("%q has another certificate than tls.crt:\n%s", command, out)
			}
		}
		return leaf
	}
	checkPlain := func() *x509.Certificate {
		t.Helper()
		return oneCertificate(plain,
			[]string{"openssl", "x509", "-in", plain.file("bundle.pem")},
			[]string{"openssl", "x509", "-inform", "der", "-in", plain.file("tls.der")})
	}
	checkJava := func() *x509.Certificate {
		t.Helper()
		return oneCertificate(java,
			[]string{"openssl", "pkcs12", "-in", java.file("keystore.p12"), "-passin", "file:" + java.file("keystore-password"), "-clcerts", "-nokeys"},
			[]string{"keytool", "-exportcert", "-rfc", "-alias", "certificate", "-keystore", java.file("keystore.jks"), "-storepass:file", java.file("keystore-password")})
	}
	// checkTrust verifies the other volumes with the roots of the third.
	checkTrust := func() {
		t.Helper()
		verify := func(v *volume) error {
			_, err := run(t, as, directory, "openssl", "verify", "-no-CAfile", "-CApath", trusting.file("certs"), "-untrusted", v.file("tls.crt"), v.file("tls.crt"))
			return err
		}
		if err := verify(java); err != nil {
			t.Error(err)
		}
		if verify(plain) == nil {
			t.Error("the roots of the issuer other verify a certificate of the issuer default")
		}
		mustRun(t, as, directory, "keytool", "-list", "-keystore", trusting.file("truststore.p12"), "-storepass:file", trusting.file("keystore-password"))
	}

	first, firstJava := checkPlain(), checkJava()
	checkTrust()
	if bytes.Equal(first.AuthorityKeyId, firstJava.AuthorityKeyId) {
		t.Error("both certificates are of the same issuer")
	}
	if key := firstJava.PublicKeyAlgorithm; key != x509.RSA {
		t.Errorf("the key of the volume java is %s", key)
	}

	java.renew()
	second := checkJava()
	if second.Equal(firstJava) || !checkPlain().Equal(first) {
		t.Error("the renewal of one volume did not renew that volume alone")
	}
	checkTrust()

	w.node.Unpublish(java.pod)
	plain.renew()
	if checkPlain().Equal(first) {
		t.Error("the plugin did not renew a volume after another of the same pod was unpublished")
	}
	mustRun(t, as, directory, "openssl", "x509", "-noout", "-in", trusting.file("ca.crt"))
	if mounts := w.node.Mounts(); len(mounts) != 2 {
		t.Errorf("mounted are %q", mounts)
	}
	for _, v := range []*volume{plain, trusting} {
		w.node.Unpublish(v.pod)
		w.node.ExpectGone(v.pod)
	}
}
