package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// pki makes the cluster's certificates. It does not store the CA's key, so it makes all
// certificates of a cluster at once.
type pki struct {
	directory string
	ca        *x509.Certificate
	key       crypto.Signer
	caPEM     []byte
}

func newPKI(directory string) (*pki, error) {
	p := &pki{directory: directory}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	p.key = key
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "step-csi-cluster"}, SerialNumber: big.NewInt(1),
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	if p.ca, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	p.caPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.MkdirAll(directory, 0o700); err != nil {
		return nil, err
	}
	return p, os.WriteFile(filepath.Join(directory, "ca.crt"), p.caPEM, 0o644)
}

// certificate makes a certificate for servers and clients and writes it to name.crt
// and name.key.
func (p *pki) certificate(name string, subject pkix.Name, dnsNames []string, ips ...string) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		Subject: subject, SerialNumber: serial, DNSNames: dnsNames,
		NotBefore: p.ca.NotBefore, NotAfter: p.ca.NotAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, ip := range ips {
		template.IPAddresses = append(template.IPAddresses, net.ParseIP(ip))
	}
	der, err := x509.CreateCertificate(rand.Reader, template, p.ca, key.Public(), p.key)
	if err != nil {
		return nil, nil, err
	}
	certPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if keyPEM, err = encodeKey(key); err != nil {
		return nil, nil, err
	}
	return certPEM, keyPEM, p.write(name, certPEM, keyPEM)
}

// keyPair makes the key pair that signs service-account tokens.
func (p *pki) keyPair(name string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	private, err := encodeKey(key)
	if err != nil {
		return err
	}
	return p.write(name, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}), private)
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), err
}

func (p *pki) write(name string, public, private []byte) error {
	if err := os.WriteFile(filepath.Join(p.directory, name+".crt"), public, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(p.directory, name+".key"), private, 0o600)
}

// kubeconfig writes a kubeconfig with a client certificate for the user and the group,
// such as system:masters, the group of administrators.
func (p *pki) kubeconfig(path, server, user, group string) error {
	subject := pkix.Name{CommonName: user}
	if group != "" {
		subject.Organization = []string{group}
	}
	certificate, key, err := p.certificate(filepath.Base(path), subject, nil)
	if err != nil {
		return err
	}
	encode := base64.StdEncoding.EncodeToString
	return os.WriteFile(path, fmt.Appendf(nil, `apiVersion: v1
kind: Config
current-context: step-csi
clusters:
- name: step-csi
  cluster: {server: "%s", certificate-authority-data: %s}
users:
- name: step-csi
  user: {client-certificate-data: %s, client-key-data: %s}
contexts:
- name: step-csi
  context: {cluster: step-csi, user: step-csi}
`, server, encode(p.caPEM), encode(certificate), encode(key)), 0o600)
}
