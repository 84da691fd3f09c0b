package volume_test

import (
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/payload"
	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/test/keystores"
)

// allFormats asks for every file at once.
var allFormats = map[string]string{
	"chain": "leaf", "bundle-file": "bundle.pem", "certificate-der-file": "tls.crt.der", "privatekey-der-file": "tls.key.der",
	"spiffe-bundle-file": "spiffe.pem", "ca-directory": "certs",
	"pkcs12-file": "keystore.p12", "pkcs12-truststore-file": "truststore.p12", "jks-file": "keystore.jks", "jks-truststore-file": "truststore.jks",
}

// checkAll checks every file of the fixture's volume, which has as many roots.
func (f *fixture) checkAll(when string, roots int) {
	f.t.Helper()
	a, err := attributes.Parse(f.spec.Attributes, f.spec.Pod, f.spec.MountGroup, f.node.Attributes)
	must(f.t, err)
	root, err := os.OpenRoot(f.path)
	must(f.t, err)
	defer root.Close()
	if a.TrustOnly {
		found, err := volume.CheckTrust(root, a.Files)
		if err != nil || len(found) != roots {
			f.t.Errorf("%s: %d roots, %v", when, len(found), err)
		}
	} else if contents, err := volume.Check(root, a.Files); err != nil || len(contents.Roots) != roots {
		f.t.Errorf("%s: %v", when, err)
	}
	if !a.Files.HasKeyStore() {
		return
	}
	if err := keystores.Check(root, a.Files, a.KeyStoreAlias, ""); err != nil {
		f.t.Errorf("%s: %v", when, err)
	}
}

// A container that runs as root puts anything in the place of any file. New roots, a restart
// and a renewal then neither fail for good nor stop the process, and repair every file.
func TestAttackOnEveryFormat(t *testing.T) {
	attacks := map[string]func(r *os.Root, path string) error{
		"nothing":     func(*os.Root, string) error { return nil },
		"empty":       func(r *os.Root, path string) error { return r.WriteFile(path, nil, 0o600) },
		"a directory": func(r *os.Root, path string) error { return r.Mkdir(path, 0o700) },
		"a FIFO":      func(r *os.Root, path string) error { return syscall.Mkfifo(r.Name()+"/"+path, 0o600) },
		"a loop":      func(r *os.Root, path string) error { return r.Symlink(path[strings.LastIndex(path, "/")+1:], path) },
		"a way out":   func(r *os.Root, path string) error { return r.Symlink("/etc/passwd", path) },
		"a long file": func(r *os.Root, path string) error {
			return errors.Join(r.WriteFile(path, nil, 0o600), os.Truncate(r.Name()+"/"+path, 1<<40))
		},
		"another file": func(r *os.Root, path string) error { return r.Symlink("ca.crt", path) },
	}
	trust := map[string]string{"trust-only": "true"}
	for key, value := range allFormats {
		if strings.Contains(key, "truststore") || key == "ca-directory" || key == "spiffe-bundle-file" {
			trust[key] = value
		}
	}
	for kind, wanted := range map[string]map[string]string{"certificate": allFormats, "trust only": trust} {
		a, err := attributes.Parse(wanted, newFixture(t).spec.Pod, "", newFixture(t).node.Attributes)
		must(t, err)
		for _, name := range append(a.Files.All(), payload.FullChain) {
			for attack, put := range attacks {
				t.Run(kind+" "+name+" "+attack, func(t *testing.T) {
					f := newFixture(t)
					f.spec.Attributes = maps.Clone(wanted)
					f.follow()
					v := f.create()
					f.damage(func(r *os.Root) error {
						path := payload.DataLink + "/" + name
						return errors.Join(r.RemoveAll(path), put(r, path))
					})
					f.addRoot()
					_, _ = v.ReplaceRoots() // fails if a file cannot be read that has to stay
					adopted := f.adoptManaged()
					adopted.Keep(t.Context())
					t.Cleanup(adopted.Stop)
					if !v.TrustOnly() {
						must(t, adopted.Renew(t.Context()))
					}
					f.checkAll("after the repair", 2)
				})
			}
		}
	}
}

// A name can change from a file to a directory and back, with a certificate and without.
func TestNamesChangeTheirKind(t *testing.T) {
	for _, trustOnly := range []string{"false", "true"} {
		f := newFixture(t)
		f.follow()
		kinds := []map[string]string{
			{"ca-file": "a", "ca-directory": "b"},
			{"ca-file": "b", "ca-directory": "a"},
			{"ca-file": "a", "spiffe-bundle-file": "b"},
			{"ca-file": "c", "ca-directory": "b", "jks-truststore-file": "a"},
			{"ca-file": "keystore-password"},
		}
		for i, kind := range slices.Concat(kinds, kinds[:1]) {
			f.spec.Attributes = maps.Clone(kind)
			f.spec.Attributes["trust-only"] = trustOnly
			if i == 0 {
				f.create()
				continue
			}
			f.addRoot()
			v := f.adoptManaged()
			v.Keep(t.Context())
			if trustOnly == "false" {
				must(t, v.Renew(t.Context()))
			}
			v.Stop()
			f.checkAll(kind["ca-file"], i+1)
		}
	}
}
