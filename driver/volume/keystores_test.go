package volume_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/payload"
	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/test/keystores"
)

// withStores are the names of a volume's files with all key stores.
var withStores = attributes.Files{
	Certificate: "tls.crt", PrivateKey: "tls.key", CA: "ca.crt",
	PKCS12: "keystore.p12", PKCS12TrustStore: "truststore.p12", JKS: "keystore.jks", JKSTrustStore: "truststore.jks",
	KeyStorePassword: "keystore-password",
}

func newFixtureWithStores(t *testing.T) *fixture {
	f := newFixture(t)
	f.spec.Attributes = map[string]string{
		"pkcs12-file": "keystore.p12", "pkcs12-truststore-file": "truststore.p12", "jks-file": "keystore.jks", "jks-truststore-file": "truststore.jks",
	}
	return f
}

const given = "the pod's own password"

// give makes the kubelet send a Secret with the password.
func (f *fixture) give(password string) {
	f.spec.Password = payload.PasswordOf(map[string]string{"keystore-password": password, "other": "ignored"})
}

// checkStores checks all files with the password, or with the one in the volume if it is empty.
func (f *fixture) checkStores(password string) *volume.Contents {
	f.t.Helper()
	contents := f.check()
	root, err := os.OpenRoot(f.path)
	must(f.t, err)
	defer root.Close()
	must(f.t, keystores.Check(root, withStores, "certificate", password))
	if _, err := root.Lstat("keystore-password"); errors.Is(err, os.ErrNotExist) != (password != "") {
		f.t.Errorf("with the password %q, the file for it: %v", password, err)
	}
	return contents
}

func (f *fixture) read(name string) string {
	f.t.Helper()
	data, err := os.ReadFile(filepath.Join(f.path, name))
	must(f.t, err)
	return string(data)
}

// change writes a file into the set in use, as a container can that runs as root. Without
// data, it removes the file.
func (f *fixture) change(name, data string) {
	f.t.Helper()
	f.damage(func(root *os.Root) error {
		err := root.Remove(payload.DataLink + "/" + name)
		if err == nil && data != "" {
			err = root.WriteFile(payload.DataLink+"/"+name, []byte(data), 0o444)
		}
		return err
	})
}

// adoptManaged adopts the volume, which must be managed then.
func (f *fixture) adoptManaged() *volume.Volume {
	f.t.Helper()
	v, err := volume.Adopt(f.t.Context(), f.node, f.spec)
	must(f.t, err)
	must(f.t, v.Unmanaged())
	return v
}

// The generated password stays the same when the certificate and the roots change, and when
// the plugin restarts.
func TestGeneratedPasswordStays(t *testing.T) {
	f := newFixtureWithStores(t)
	v := f.create()
	first := f.checkStores("")
	password := f.read("keystore-password")
	if len(password) != 32 {
		t.Errorf("the password has %d bytes", len(password))
	}
	for _, step := range []struct {
		name   string
		change func()
	}{
		{"renewal", func() { must(t, v.Renew(t.Context())) }},
		{"new root", func() {
			f.addRoot()
			if changed, err := v.ReplaceRoots(); !changed || err != nil {
				t.Errorf("changed %v, error %v", changed, err)
			}
		}},
		{"restart", func() { v = f.adoptManaged(); v.Keep(t.Context()) }},
		{"renewal after the restart", func() { must(t, v.Renew(t.Context())) }},
		{"new root, before the kubelet publishes again", func() {
			f.addRoot()
			found, err := volume.Find(f.node, "mount")
			must(t, err)
			if changed, err := found.ReplaceRoots(); !changed || err != nil {
				t.Errorf("changed %v, error %v", changed, err)
			}
		}},
	} {
		step.change()
		f.checkStores("")
		if now := f.read("keystore-password"); now != password {
			t.Errorf("%s: the password has changed", step.name)
		}
	}
	if f.check().Leaf.Equal(first.Leaf) {
		t.Error("no renewal")
	}
}

// A restart and the same roots change no file.
func TestRestartChangesNoKeyStore(t *testing.T) {
	for _, password := range []string{"", given} {
		f := newFixtureWithStores(t)
		if password != "" {
			f.give(password)
		}
		f.create()
		before, _ := f.set("keystore.p12")
		v, damaged := f.adopt()
		if changed, err := v.ReplaceRoots(); changed || err != nil || damaged {
			t.Errorf("changed %v, damaged %v, error %v", changed, damaged, err)
		}
		if after, _ := f.set("keystore.p12"); after != before {
			t.Error("the files were written again")
		}
		f.checkStores(password)
	}
}

// The password of a Secret is in no file and not in the record. A new one is used from the
// next publish on, with the same certificate.
func TestPasswordOfSecret(t *testing.T) {
	f := newFixtureWithStores(t)
	f.give(given)
	v := f.create()
	first := f.checkStores(given).Leaf
	must(t, v.Renew(t.Context()))
	second := f.checkStores(given).Leaf
	if second.Equal(first) {
		t.Error("no renewal")
	}
	f.addRoot()
	if changed, err := v.ReplaceRoots(); !changed || err != nil {
		t.Errorf("changed %v, error %v", changed, err)
	}
	f.checkStores(given)

	const changed = "another password"
	f.give(changed)
	v = f.adoptManaged()
	v.Keep(t.Context())
	if leaf := f.checkStores(changed).Leaf; !leaf.Equal(second) {
		t.Error("a new password was given, and the certificate is another one")
	}

	target, err := f.node.Targets.Open("mount")
	must(t, err)
	defer target.Close()
	record, err := tmpfs.Record(target)
	must(t, err)
	for _, password := range []string{given, changed} {
		if strings.Contains(string(record), password) || strings.Contains(string(record), "password") {
			t.Errorf("the record has the password: %s", record)
		}
		must(t, filepath.WalkDir(f.path, func(path string, entry os.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() {
				return err
			}
			if data, err := os.ReadFile(path); err != nil || strings.Contains(string(data), password) {
				t.Errorf("%s has the password; error %v", path, err)
			}
			return nil
		}))
	}
}

// After a restart, the plugin does not know the password of a Secret. Until the kubelet sends
// it, new roots reach the PEM file, and the key stores stay readable.
func TestRootsBeforeThePasswordIsKnown(t *testing.T) {
	f := newFixtureWithStores(t)
	f.give(given)
	f.create()
	before := f.read("truststore.p12")
	f.addRoot()
	found, err := volume.Find(f.node, "mount")
	must(t, err)
	if changed, err := found.ReplaceRoots(); !changed || err != nil {
		t.Errorf("changed %v, error %v", changed, err)
	}
	if contents := f.check(); len(contents.Roots) != 2 || f.read("truststore.p12") != before {
		t.Errorf("%d roots in the PEM file, want 2, and the trust store as it was", len(contents.Roots))
	}
	v := f.adoptManaged()
	v.Keep(t.Context())
	f.checkStores(given)
}

// A container that runs as root can change the files. The plugin repairs them: the password is
// replaced if it is damaged, and all key stores have the same one.
func TestDamagedKeyStores(t *testing.T) {
	for name, data := range map[string]string{
		"keystore-password": "", "keystore-password ": "short", "keystore-password  ": "with a newline\n", "keystore-password   ": strings.Repeat("long", 1<<16),
		"keystore-password    ": "another valid password",
		"keystore.p12":          "garbage", "truststore.p12": "", "keystore.jks": "garbage", "truststore.jks": "garbage",
	} {
		name := strings.TrimSpace(name)
		for event, repair := range map[string]func(f *fixture, v *volume.Volume) error{
			"renewal": func(f *fixture, v *volume.Volume) error { return v.Renew(f.t.Context()) },
			"restart": func(f *fixture, v *volume.Volume) error {
				f.adoptManaged().Keep(f.t.Context())
				return nil
			},
			"new root": func(f *fixture, v *volume.Volume) error {
				f.addRoot()
				_, err := v.ReplaceRoots()
				return err
			},
		} {
			t.Run(fmt.Sprintf("%s %.8q %s", name, data, event), func(t *testing.T) {
				f := newFixtureWithStores(t)
				v := f.create()
				before := f.read("keystore-password")
				f.change(name, data)
				must(t, repair(f, v))
				f.checkStores("")
				if after := f.read("keystore-password"); name != "keystore-password" && after != before {
					t.Error("the password is another one")
				}
			})
		}
	}
}

// A volume whose password is damaged, and whose key is lost, still follows the roots.
func TestRootsWithoutKeyAndPassword(t *testing.T) {
	f := newFixtureWithStores(t)
	v := f.create()
	f.change("tls.key", "garbage")
	f.change("keystore-password", "x")
	f.addRoot()
	if changed, err := v.ReplaceRoots(); !changed || err != nil {
		t.Errorf("changed %v, error %v", changed, err)
	}
	if got := strings.Count(f.read("ca.crt"), "BEGIN"); got != 2 {
		t.Errorf("%d roots, want 2", got)
	}
	must(t, v.Renew(t.Context()))
	f.checkStores("")
}

// A Secret that cannot be used is an error at the first publish. It does not stop the renewals
// of a mounted volume.
func TestUnusableSecret(t *testing.T) {
	for _, test := range []struct {
		attributes, secret map[string]string
		want               string
	}{
		{map[string]string{"jks-file": "a"}, map[string]string{"keystore-password": "s3cre"},
			"nodePublishSecretRef: the key keystore-password of the Secret is not a password for key stores: it has 5 bytes; a key store's password has 6 to 128"},
		{map[string]string{"jks-file": "a"}, map[string]string{"keystore-password": "s3cret\n"}, "it ends with a newline"},
		{map[string]string{"jks-file": "a"}, map[string]string{"password": "s3cret"},
			"nodePublishSecretRef: the Secret has no key keystore-password, or it is empty; add it, or leave out nodePublishSecretRef"},
		{map[string]string{"jks-file": "a"}, map[string]string{"keystore-password": ""}, "has no key keystore-password, or it is empty"},
		{nil, map[string]string{"keystore-password": "s3cret"},
			"nodePublishSecretRef: the Secret is for the password of a key store, and the volume has none; set pkcs12-file,"},
		{map[string]string{"jks-file": "a", "keystore-password-file": "b"}, map[string]string{"keystore-password": "s3cret"},
			"keystore-password-file: the password of nodePublishSecretRef is not written to a file; leave out one of the two"},
		{nil, map[string]string{"other": "s3cret"}, ""},
		{map[string]string{"jks-file": "a"}, map[string]string{"csi.storage.k8s.io/serviceAccount.tokens": "{}"}, ""},
	} {
		f := newFixture(t)
		f.spec.Attributes, f.spec.Password = test.attributes, payload.PasswordOf(test.secret)
		_, err := volume.Create(t.Context(), f.node, f.spec, issuer.Token{})
		if test.want == "" {
			must(t, err)
			continue
		}
		if !errors.Is(err, volume.ErrInvalid) || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "s3cre") {
			t.Errorf("%v, %v: %v", test.attributes, test.secret, err)
		}
	}
	f := newFixture(t)
	f.create()
	f.give(given) // which has no effect
	f.adoptManaged()

	f = newFixtureWithStores(t)
	f.give(given)
	f.create()
	f.give("short")
	v, err := volume.Adopt(t.Context(), f.node, f.spec)
	must(t, err)
	if err := v.Unmanaged(); err == nil || !strings.Contains(err.Error(), "it has 5 bytes") {
		t.Errorf("with a password that cannot be used: %v", err)
	}
	f.checkStores(given)
}

// Volumes without key stores get no password.
func TestNoKeyStore(t *testing.T) {
	f := newFixture(t)
	f.create()
	if entries, err := filepath.Glob(filepath.Join(f.path, "*password*")); err != nil || len(entries) > 0 {
		t.Errorf("%q, %v", entries, err)
	}
}
