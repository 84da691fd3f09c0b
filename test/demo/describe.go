package main

import (
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// describe prints the certificate, the files and the mount of a volume.
func describe(path string) error {
	pair, roots, err := load(path)
	if err != nil {
		return err
	}
	leaf := pair.Leaf
	intermediates := x509.NewCertPool()
	for _, der := range pair.Certificate[1:] {
		intermediate, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		intermediates.AddCert(intermediate)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates}); err != nil {
		return fmt.Errorf("tls.crt does not verify against ca.crt: %w", err)
	}
	detail("DNS names   %s", strings.Join(leaf.DNSNames, ", "))
	detail("URI         %s", leaf.URIs[0])
	detail("subject     %s, issued by %s", leaf.Subject, leaf.Issuer)
	detail("valid       until %s, for %s more; verified against ca.crt", leaf.NotAfter.Local().Format(time.TimeOnly),
		time.Until(leaf.NotAfter).Round(time.Second))
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := describeFile(path, entry.Name()); err != nil {
			return err
		}
	}
	return describeMount(path)
}

func describeFile(path, name string) error {
	info, err := os.Lstat(filepath.Join(path, name))
	if err != nil {
		return err
	}
	if info.Mode().Type() != os.ModeSymlink {
		detail("%s  %s/", info.Mode(), name)
		return nil
	}
	to, err := os.Readlink(filepath.Join(path, name))
	if err != nil {
		return err
	}
	if info, err = os.Stat(filepath.Join(path, name)); err != nil {
		return err
	}
	owner, _ := info.Sys().(*syscall.Stat_t)
	detail("%s  %d:%d  %s -> %s", info.Mode(), owner.Uid, owner.Gid, name, to)
	return nil
}

// describeMount prints the volume's line in the mount table.
func describeMount(path string) error {
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 3 && fields[1] == path {
			detail("mount: %s on …/%s type %s (%s)", fields[0], filepath.Base(filepath.Dir(path))+"/mount", fields[2], fields[3])
			return nil
		}
	}
	return fmt.Errorf("%s is not mounted", path)
}
