package driver

import (
	"context"
	"testing"
	"time"

	"github.com/flexstack/step-csi/issuer"
)

// RSA keys of the issuers are prepared while the driver runs, and only then.
func TestKeysArePreparedWhileTheDriverRuns(t *testing.T) {
	keys := issuer.NewKeyGenerator()
	i, err := issuer.New(issuer.Config{Signer: signer{}, Policy: func(context.Context, issuer.Pod, issuer.Request) error { return nil }, Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	d, err := New(Config{Name: "csi.step-ca.io", NodeName: "node-1", KubeletDir: "/var/lib/kubelet", Issuers: map[string]Issuer{"default": {Issuer: i}}})
	if err != nil {
		t.Fatal(err)
	}
	var stop context.CancelFunc
	d.background, stop = context.WithCancel(t.Context())
	if _, err := keys.Generate(t.Context(), issuer.Applicant{}, issuer.RSA2048); err != nil {
		t.Fatal(err)
	}
	for begin := time.Now(); keys.Prepared(issuer.RSA2048) == 0; time.Sleep(time.Millisecond) {
		if time.Since(begin) > time.Minute {
			t.Fatal("no key is prepared")
		}
	}
	stop()
	d.ending.Wait()
	if keys.Prepared(issuer.RSA2048) != 0 {
		t.Error("a key is left")
	}
}
