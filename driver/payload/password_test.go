package payload_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2/textlogger"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/payload"
	"github.com/flexstack/step-csi/issuer"
)

// A password does not print, whatever prints it.
func TestPasswordDoesNotPrint(t *testing.T) {
	const secret = "s3cret-of-the-pod"
	p := payload.PasswordOf(map[string]string{"keystore-password": secret})
	holder := struct {
		Password payload.Password
		Pointer  *payload.Password
	}{p, &p}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&out, verb+verb+verb+"\n", p, &p, holder)
	}
	fmt.Fprintln(&out, p, holder, fmt.Errorf("wrapped: %v", p))
	if err := json.NewEncoder(&out).Encode(holder); err != nil {
		t.Fatal(err)
	}
	slog.New(slog.NewTextHandler(&out, nil)).Info("text", "password", p, "holder", holder)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("json", "password", p, "holder", holder)
	logr.FromSlogHandler(slog.NewJSONHandler(&out, nil)).Info("logr", "password", p, "holder", holder)
	textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(&out))).Info("klog", "password", p, "holder", holder)
	hexadecimal := fmt.Sprintf("%x", secret)
	if text := out.String(); strings.Contains(text, secret) || strings.Contains(text, hexadecimal) || !strings.Contains(text, "[password]") {
		t.Errorf("printed:\n%s", text)
	}
}

// Without a known password, the key stores are left out.
func TestNoKeyStoresWithoutPassword(t *testing.T) {
	c := newCredential(t, issuer.ECDSAP256)
	files, err := payload.EncodeTrust(c.Roots, attributes.Attributes{Files: allFiles}, payload.Password{})
	if err != nil || len(files) != 1 || files[0].Name != "ca.crt" {
		t.Errorf("%d files, error %v", len(files), err)
	}
}

func TestReadPassword(t *testing.T) {
	root := openRoot(t)
	generated := "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
	write(t, root, files("good", generated, "short", "abc", "long", strings.Repeat("long", 1000), "line", "password\n"))
	p, err := payload.ReadPassword(root, "good")
	if err != nil || p.Given() || p == (payload.Password{}) {
		t.Errorf("%v", err)
	}
	for name, want := range map[string]string{"short": "it has 3 bytes", "long": "longer than 128 bytes", "line": "ends with a newline", "": "not a regular file"} {
		if p, err := payload.ReadPassword(root, name); err == nil || !strings.Contains(err.Error(), want) || p != (payload.Password{}) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := payload.ReadPassword(root, "missing"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
