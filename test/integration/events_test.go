package integration

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	core "k8s.io/api/core/v1"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/test/node"
)

// eventsOf returns the pod's events of the reason.
func (r *authorities) eventsOf(p node.Pod, reason issuer.Reason) []core.Event {
	return slices.DeleteFunc(r.reviews.Events(), func(e core.Event) bool {
		return string(e.InvolvedObject.UID) != p.ID() || e.Reason != string(reason)
	})
}

// waitEvent waits for the event, and returns its message. The kubelet publishes the volume
// again and again, which brings new tokens.
func (r *authorities) waitEvent(n *node.Node, p node.Pod, reason issuer.Reason) string {
	r.t.Helper()
	node.Eventually(r.t, 6*time.Minute, fmt.Sprintf("the event %s of %s", reason, p.Name), func() bool {
		n.Publish(p)
		return len(r.eventsOf(p, reason)) > 0
	})
	e := r.eventsOf(p, reason)[0]
	if e.InvolvedObject.Kind != "Pod" || e.InvolvedObject.Name != p.Name || e.InvolvedObject.Namespace != "shop" {
		r.t.Errorf("the event is about %+v", e.InvolvedObject)
	}
	return e.Message
}

// The owner of a running pod sees in the pod's events that its certificate is not renewed,
// that it has expired, and that it is renewed again.
func TestEventsOfARunningPod(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	r := startAuthority(t, ca, 1, "")
	n := r.newNode()
	p := node.Pod{Name: "web-0", Attributes: map[string]string{"duration": "3m", "renew-before": "160s"}}
	other := node.Pod{Name: "web-1"}
	for _, pod := range []node.Pod{p, other} {
		r.admit(pod)
		n.Publish(pod)
	}
	ca.Stop()
	message := r.waitEvent(n, p, issuer.RenewalFailing)
	for _, want := range []string{`volume "`, "the certificate is valid until ", "cannot be renewed", "failures in a row: ", "connection refused"} {
		if !strings.Contains(message, want) {
			t.Errorf("%q does not contain %q", message, want)
		}
	}
	if message := r.waitEvent(n, p, issuer.CertificateExpired); !strings.Contains(message, "the certificate expired at ") {
		t.Error(message)
	}
	node.Must(t, ca.Resume())
	if message := r.waitEvent(n, p, issuer.CertificateRenewed); !strings.Contains(message, "the certificate was renewed, and is valid until ") {
		t.Error(message)
	}
	for _, e := range r.reviews.Events() {
		if string(e.InvolvedObject.UID) != p.ID() {
			t.Errorf("an event of another pod: %+v", e)
		}
	}
	for what, log := range map[string]*node.Log{"plugin": n.Logs, "authority": r.replicas[0].logs} {
		if log.Has(jwt(p.ID())) || log.Has(jwt("plugin")) {
			t.Errorf("the log of the %s contains a token:\n%s", what, log)
		}
	}
	n.Unpublish(p)
	n.Unpublish(other)
}

// A mode of the files that the application may not read, and an issuer that the
// configuration no longer has, are events of the pod.
func TestEventsOfAttributes(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	r := startAuthority(t, ca, 2, "")
	n := r.prepareNode()
	config, err := os.ReadFile(n.Config)
	node.Must(t, err)
	both := strings.Replace(string(config), "issuers:", "issuers:\n  gone:\n"+strings.SplitN(string(config), "default:\n", 2)[1], 1)
	node.Must(t, os.WriteFile(n.Config, []byte(strings.ReplaceAll(both, "type: ra,", "type: ra, name: default,")), 0o600))
	n.Start()
	secret := node.Pod{Name: "web-0", Attributes: map[string]string{"file-mode": "0400"}}
	orphan := node.Pod{Name: "web-1", Attributes: map[string]string{"issuer": "gone"}}
	for _, p := range []node.Pod{secret, orphan} {
		r.admit(p)
		n.Publish(p)
	}
	if message := r.waitEvent(n, secret, issuer.FilesUnreadable); !strings.Contains(message, `file-mode: "0400" lets only root read the files`) {
		t.Error(message)
	}
	reported := func() (count int) {
		for _, replica := range r.replicas {
			count += replica.logs.Count(`"Pod informed by an event" reason="FilesUnreadable"`)
		}
		return count
	}
	// The event exists before its report ends.
	node.Eventually(t, 2*time.Minute, "the process has reported", func() bool { return reported() == 1 })
	n.Stop()
	node.Must(t, os.WriteFile(n.Config, config, 0o600))
	n.Start()
	if message := r.waitEvent(n, orphan, issuer.IssuerRemoved); !strings.Contains(message, `"gone" is not an issuer in the plugin's configuration`) {
		t.Error(message)
	}
	// The process that was stopped and this one report the mode. It is one event, or two if
	// half an hour ended between.
	node.Eventually(t, 2*time.Minute, "both processes have reported", func() bool {
		n.Publish(secret)
		return reported() >= 2
	})
	if events := r.eventsOf(secret, issuer.FilesUnreadable); len(events) > 2 {
		t.Errorf("%d events", len(events))
	}
	n.Unpublish(secret)
	n.Unpublish(orphan)
}

// A registration authority that makes no events does everything else.
func TestNoEvents(t *testing.T) {
	t.Parallel()
	r := startAuthority(t, startCA(t), 1, "  events: false\n")
	n := r.prepareNode()
	n.Flags = append(n.Flags, "--v=4")
	n.Start()
	p := node.Pod{Name: "web-0", Attributes: map[string]string{"file-mode": "0400"}}
	r.admit(p)
	n.Publish(p)
	node.Eventually(t, time.Minute, "a report that is turned down", func() bool { return n.Logs.Has("makes no events of pods") })
	if events := r.reviews.Events(); len(events) > 0 {
		t.Errorf("events: %+v", events)
	}
	n.Unpublish(p)
}
