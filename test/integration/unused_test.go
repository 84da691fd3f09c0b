package integration

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/test/node"
	"github.com/flexstack/step-csi/test/realca"
)

// slowCA is a real step-ca. While it holds, signed certificates arrive only when the test
// lets them.
type slowCA struct {
	*middleman
	t     *testing.T
	holds atomic.Bool
	// signed receives a certificate that the CA has signed. The CA's answer waits until
	// the test receives from it twice.
	signed chan string
}

func slowDown(t *testing.T, ca *realca.CA) *slowCA {
	t.Helper()
	s := &slowCA{middleman: interpose(t, ca), t: t, signed: make(chan string)}
	next := s.server.Config.Handler
	s.server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		recorder := httptest.NewRecorder()
		next.ServeHTTP(recorder, r)
		if r.Method == http.MethodPost {
			<-s.asks // nobody looks at the requests
		}
		if s.holds.Load() && strings.HasSuffix(r.URL.Path, "/sign") && recorder.Code == http.StatusCreated {
			serial := serialOf(t, recorder.Body.Bytes())
			for range 2 {
				select {
				case s.signed <- serial:
				case <-t.Context().Done():
				}
			}
		}
		w.WriteHeader(recorder.Code)
		_, _ = w.Write(recorder.Body.Bytes())
	})
	return s
}

// serialOf returns the serial number of the certificate in an answer to /sign.
func serialOf(t *testing.T, answer []byte) string {
	var body struct{ Crt string }
	if err := json.Unmarshal(answer, &body); err != nil {
		t.Error(err)
		return ""
	}
	block, _ := pem.Decode([]byte(body.Crt))
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Error(err)
		return ""
	}
	return leaf.SerialNumber.String()
}

// waitSigned waits until the CA has signed a certificate, and returns its serial number.
// The answer waits for release.
func (s *slowCA) waitSigned() string {
	s.t.Helper()
	select {
	case serial := <-s.signed:
		return serial
	case <-time.After(time.Minute):
		s.t.Fatal("the CA has signed nothing")
		return ""
	}
}

func (s *slowCA) release() { <-s.signed }

// A certificate that the CA has issued and that no pod gets is revoked: after a publish
// that was canceled or failed, and after a renewal that cannot write its files. The
// certificate in the volume is not revoked.
func TestUnusedCertificatesAreRevoked(t *testing.T) {
	t.Parallel()
	ca := startRealCA(t)
	s := slowDown(t, ca)
	r := startAuthority(t, s, 1, "")
	for mode, n := range map[string]*node.Node{"node": newNode(t, s), "ra": r.newNode()} {
		attributes := map[string]string{"revoke-on-delete": "true", "duration": "5m"}
		canceled := node.Pod{Name: "canceled-0", UID: mode + "-canceled", Attributes: attributes}
		failing := node.Pod{Name: "failing-0", UID: mode + "-failing", Attributes: attributes}
		full := node.Pod{Name: "full-0", UID: mode + "-full", Attributes: attributes}
		for _, p := range []node.Pod{canceled, failing, full} {
			r.admit(p)
		}
		expectRevoked := func(what, serial string) {
			t.Helper()
			node.Eventually(t, time.Minute, mode+": the revocation of the certificate "+what, func() bool {
				return slices.Contains(strings.Fields(revoked(t, ca)), serial)
			})
		}
		publish := func(p node.Pod) (cancel func(), result chan error) {
			ctx, cancel := context.WithCancel(t.Context())
			result = make(chan error, 1)
			request := n.MustRequest(p)
			go func() {
				_, err := n.NodePublishVolume(ctx, request)
				result <- err
			}()
			return cancel, result
		}

		s.holds.Store(true)
		cancel, result := publish(canceled)
		serial := s.waitSigned()
		cancel()
		if err := <-result; status.Code(err) != codes.Canceled {
			t.Errorf("%s: the canceled publish: %v", mode, err)
		}
		n.Unpublish(canceled) // does not wait for the CA
		n.ExpectGone(canceled)
		s.release()
		expectRevoked("of a canceled publish", serial)

		cancel, result = publish(failing)
		serial = s.waitSigned()
		node.Must(t, syscall.Rmdir(n.Target(failing)))
		s.release()
		if err := <-result; err == nil {
			t.Errorf("%s: a publish without a target succeeded", mode)
		}
		cancel()
		expectRevoked("of a failed publish", serial)
		n.Unpublish(failing)

		cancel, result = publish(full)
		mounted := s.waitSigned()
		s.release()
		node.Must(t, <-result)
		cancel()
		changeVolume(t, n, full, func(root *os.Root, _ *tmpfs.Tree, _ []byte) error {
			if err := root.WriteFile("filler", make([]byte, 2<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("fill the volume: %v", err)
			}
			return nil
		})
		n.Publish(full.With("service-names", "web")) // a renewal
		serial = s.waitSigned()
		s.holds.Store(false)
		s.release()
		expectRevoked("of a renewal into a full volume", serial)
		if leaf := read(t, n.Target(full)).leaf().SerialNumber.String(); leaf != mounted || slices.Contains(strings.Fields(revoked(t, ca)), mounted) {
			t.Errorf("%s: the volume has the certificate %s, want %s, not revoked", mode, leaf, mounted)
		}
		n.Unpublish(full)
		expectRevoked("of the removed volume", mounted)
		n.Stop()
	}
}
