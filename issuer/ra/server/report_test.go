package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"k8s.io/klog/v2"

	"github.com/go-logr/logr"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/ra/rapb"
	"github.com/flexstack/step-csi/test/reviews"
)

// eventList is an EventRecorder that keeps the events, or answers with an error.
type eventList struct {
	mu  sync.Mutex
	all []Event
	err error
}

func (l *eventList) Record(_ context.Context, e Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, e)
	return l.err
}

func (l *eventList) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.all)
}

// serveReports serves a server that makes events.
func serveReports(t testing.TB, events EventRecorder) *served {
	return serveFuzzed(t, func(s *Server) { s.reports = newReports(events) })
}

// aboutWeb is a valid report about the pod web.
func aboutWeb() *rapb.ReportRequest {
	return &rapb.ReportRequest{PodToken: "a.web.c", Reason: "RenewalFailing", Volume: "tls", Text: "the certificate cannot be renewed"}
}

// An event is about the pod that the token identifies.
func TestReportMakesAnEvent(t *testing.T) {
	events := &eventList{}
	s := serveReports(t, events)
	if _, err := s.client("127.0.0.1").Report(as(t, pluginToken), aboutWeb()); err != nil {
		t.Fatal(err)
	}
	want := Event{Pod: web, Reason: issuer.RenewalFailing, Volume: "tls", Message: `volume "tls": the certificate cannot be renewed`}
	if len(events.all) != 1 || events.all[0] != want {
		t.Errorf("events %+v, want %+v", events.all, want)
	}
	if log := s.log.String(); !strings.Contains(log, `"Pod informed by an event" reason="RenewalFailing" node="node-1" plugin="step-csi-1" pod="shop/web-0"`) {
		t.Errorf("the log:\n%s", log)
	}
	if n := testutil.ToFloat64(s.metrics.reports.WithLabelValues("RenewalFailing", "OK")); n != 1 {
		t.Errorf("%v reports are counted", n)
	}
}

// elsewhere is a Reviewer that knows pods that the caller must make no events of: a pod of
// another node, and a node plugin.
type elsewhere struct{ knowing }

func (e elsewhere) Review(ctx context.Context, token issuer.Token) (issuer.Pod, error) {
	switch token.Reveal() {
	case "a.other-node.c":
		pod := web
		pod.Node = "node-2"
		return pod, nil
	case "a.plugin.c":
		return plugin, nil
	case "a.down.c":
		return issuer.Pod{}, issuer.Unavailable
	}
	return e.knowing.Review(ctx, token)
}

// Only the node plugin of a pod's node makes events of the pod, and only with one of
// the reasons. The API server gets no more reviews than needed.
func TestReportIsDenied(t *testing.T) {
	change := func(f func(*rapb.ReportRequest)) *rapb.ReportRequest {
		r := aboutWeb()
		f(r)
		return r
	}
	for name, test := range map[string]struct {
		caller  string
		request *rapb.ReportRequest
		code    codes.Code
		reviews int64 // of pods' tokens
	}{
		"no caller":                 {"", aboutWeb(), codes.Unauthenticated, 0},
		"unknown caller":            {reviews.Token(plugin, "unknown"), aboutWeb(), codes.Unauthenticated, 0},
		"a pod calls":               {reviews.Token(web, "web"), aboutWeb(), codes.PermissionDenied, 0},
		"a pod with a forged claim": {webAsPlugin, aboutWeb(), codes.PermissionDenied, 0},
		"no pod":                    {pluginToken, change(func(r *rapb.ReportRequest) { r.PodToken = "" }), codes.Unauthenticated, 0},
		"unknown pod":               {pluginToken, change(func(r *rapb.ReportRequest) { r.PodToken = "a.b.c" }), codes.Unauthenticated, 1},
		"pod of another node":       {pluginToken, change(func(r *rapb.ReportRequest) { r.PodToken = "a.other-node.c" }), codes.PermissionDenied, 1},
		"a node plugin's pod":       {pluginToken, change(func(r *rapb.ReportRequest) { r.PodToken = "a.plugin.c" }), codes.PermissionDenied, 1},
		"the API server is down":    {pluginToken, change(func(r *rapb.ReportRequest) { r.PodToken = "a.down.c" }), codes.Unavailable, 1},
		"no reason":                 {pluginToken, change(func(r *rapb.ReportRequest) { r.Reason = "" }), codes.InvalidArgument, 0},
		"unknown reason":            {pluginToken, change(func(r *rapb.ReportRequest) { r.Reason = "FailedMount" }), codes.InvalidArgument, 0},
		"no volume":                 {pluginToken, change(func(r *rapb.ReportRequest) { r.Volume = "" }), codes.InvalidArgument, 0},
		"no volume's name":          {pluginToken, change(func(r *rapb.ReportRequest) { r.Volume = "tls\nEvents:" }), codes.InvalidArgument, 0},
	} {
		events := &eventList{}
		reviewed := &counting{Reviewer: elsewhere{}}
		s := serveFuzzed(t, func(s *Server) { s.reports, s.reviewer = newReports(events), reviewed })
		_, err := s.client("127.0.0.1").Report(as(t, test.caller), test.request)
		if status.Code(err) != test.code || events.count() > 0 || reviewed.asked.Load() != test.reviews {
			t.Errorf("%s: %d events, %d reviews, error %v", name, events.count(), reviewed.asked.Load(), err)
		}
		if log := s.log.String(); strings.Contains(log, "Pod informed") || strings.Count(log, "\n") > 1 {
			t.Errorf("%s: the log:\n%s", name, log)
		}
		if n := testutil.CollectAndCount(s.metrics.reports); n > len(issuer.Reasons())+1 {
			t.Errorf("%s: %d series", name, n)
		}
	}
}

// counting is a Reviewer that counts.
type counting struct {
	Reviewer
	asked atomic.Int64
}

func (c *counting) Review(ctx context.Context, token issuer.Token) (issuer.Pod, error) {
	c.asked.Add(1)
	return c.Reviewer.Review(ctx, token)
}

// Reports are limited for a pod, for a node and for all nodes, before they cost anything.
// A limit of reports is no limit of certificates.
func TestReportsAreLimited(t *testing.T) {
	one := func() *limiter { return newLimiter(Limit{Rate: 1e-9, Burst: 1}) }
	for name, test := range map[string]struct {
		limit   func(*Server)
		code    codes.Code
		reviews int64
	}{
		"of the pod":  {func(s *Server) { s.reports.pods = one() }, codes.ResourceExhausted, 2},
		"of the node": {func(s *Server) { s.reports.nodes = one() }, codes.ResourceExhausted, 1},
		"of all":      {func(s *Server) { s.reports.all = one() }, codes.Unavailable, 1},
	} {
		events, reviewed := &eventList{}, &counting{Reviewer: knowing{}}
		client := serveFuzzed(t, func(s *Server) {
			s.reports, s.reviewer = newReports(events), reviewed
			test.limit(s)
		}).client("127.0.0.1")
		_, _ = client.Report(as(t, pluginToken), aboutWeb())
		_, err := client.Report(as(t, pluginToken), aboutWeb())
		if status.Code(err) != test.code || events.count() != 1 || reviewed.asked.Load() != test.reviews {
			t.Errorf("%s: %d events, %d reviews, error %v", name, events.count(), reviewed.asked.Load(), err)
		}
		if _, err := client.Sign(as(t, pluginToken), webRequest(t, "a.web.c")); status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), "limit") { // the CA never signs
			t.Errorf("%s: sign: %v", name, err)
		}
	}
}

// With the default limits, a node that is under attack makes few events, however often it
// asks and for however many of its pods.
func TestHostileNodeMakesFewEvents(t *testing.T) {
	events := &eventList{}
	s := serveFuzzed(t, func(s *Server) { s.reports, s.reviewer = newReports(events), crowd{} })
	client := s.client("127.0.0.1")
	begin := time.Now()
	// most is what a bucket has given since then.
	most := func(l Limit) int { return l.Burst + 1 + int(l.Rate*time.Since(begin).Seconds()) }
	for n := range 300 {
		r := aboutWeb()
		r.PodToken = fmt.Sprintf("a.%d.c", n%100)
		r.Text = fmt.Sprint("spam ", n)
		_, _ = client.Report(as(t, pluginToken), r)
	}
	if n := events.count(); n > most(reportsOfNode) {
		t.Errorf("%d events, want at most %d", n, most(reportsOfNode))
	}
	r := aboutWeb()
	r.PodToken = "a.0.c"
	s.reports.nodes = newLimiter(Limit{Rate: 1e9, Burst: 1e9})
	s.reports.pods = newLimiter(reportsOfPod)
	before := events.count()
	for range 50 {
		_, _ = client.Report(as(t, pluginToken), r)
	}
	if n := events.count() - before; n > most(reportsOfPod) {
		t.Errorf("%d events of one pod", n)
	}
}

// crowd is a Reviewer that takes the middle part of a token for a pod's name.
type crowd struct{ knowing }

func (c crowd) Review(ctx context.Context, token issuer.Token) (issuer.Pod, error) {
	if token.Reveal() == pluginToken {
		return c.knowing.Review(ctx, token)
	}
	pod := web
	pod.Name = "web-" + strings.Split(token.Reveal(), ".")[1]
	pod.UID = "uid-" + pod.Name
	return pod, nil
}

// A server without the right to create events says so once in its log. A server whose
// events are turned off asks the API server nothing.
func TestReportsWithoutEvents(t *testing.T) {
	events := &eventList{err: fmt.Errorf("%w: forbidden", errEventsForbidden)}
	s := serveReports(t, events)
	client := s.client("127.0.0.1")
	for range 3 {
		if _, err := client.Report(as(t, pluginToken), aboutWeb()); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "authority.events: false") {
			t.Error(err)
		}
	}
	const line = `"Cannot create events of pods; further failures are logged at -v=4"`
	if log := s.log.String(); strings.Count(log, line) != 1 || strings.Count(log, "\n") != 1 {
		t.Errorf("the log:\n%s", log)
	}
	// The right is given, and taken again.
	events.err = nil
	_, err := client.Report(as(t, pluginToken), aboutWeb())
	events.err = errEventsForbidden
	_, _ = client.Report(as(t, pluginToken), aboutWeb())
	if log := s.log.String(); err != nil || strings.Count(log, line) != 2 {
		t.Errorf("error %v; the log:\n%s", err, log)
	}

	reviewed := &counting{Reviewer: knowing{}}
	off := serveFuzzed(t, func(s *Server) { s.reviewer = reviewed })
	if _, err := off.client("127.0.0.1").Report(as(t, pluginToken), aboutWeb()); status.Code(err) != codes.FailedPrecondition || reviewed.asked.Load() > 0 || off.log.String() != "" {
		t.Errorf("%d reviews, error %v; the log:\n%s", reviewed.asked.Load(), err, off.log)
	}
}

// The text in an event cannot change how a terminal shows it, and is short, whatever the
// node plugin sends.
func TestTextOfEvents(t *testing.T) {
	for text, want := range map[string]string{
		"plain":                           "plain",
		"Zürich, ✓, \"quoted\"":           "Zürich, ✓, \"quoted\"",
		"a\nEvents:\r\n\tb\x00c":          "a Events:   b c",
		"\x1b[31mred\x1b]0;title\a":       " [31mred ]0;title ",
		"\u202egnp.exe\u2028\u200b\ufeff": " gnp.exe   ",
		"bad \xff\xfe utf-8":              "bad  utf-8",
	} {
		if got := printable(text, maxEventMessage); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	for _, letter := range []string{"x", "ü", "✓", "\n", "\xff", "\U0001f600"} {
		for n := range 8 {
			checkText(t, printable(strings.Repeat("y", n)+strings.Repeat(letter, 60<<10/len(letter)), maxEventMessage))
		}
	}
}

func checkText(t *testing.T, text string) {
	t.Helper()
	if len(text) > maxEventMessage || !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		t.Fatalf("%d bytes: %q", len(text), text)
	}
}

// FuzzReport takes a request in wire format: whatever it contains, an event is about the
// pod of the token, has a known reason, and is printable and short.
func FuzzReport(f *testing.F) {
	for _, request := range []*rapb.ReportRequest{
		aboutWeb(),
		{PodToken: "a.web.c", Reason: "CertificateRenewed", Volume: "tls", Text: "\x1b[2J" + strings.Repeat("ü", 5000)},
		{PodToken: "a.b.c", Reason: "Killing", Volume: "../etc"},
	} {
		wire, err := proto.Marshal(request)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire)
	}
	ctx := klog.NewContext((&call{caller: plugin}).context(context.Background()), logr.Discard())
	s := newFuzzed(f, &recording{})
	f.Fuzz(func(t *testing.T, wire []byte) {
		req := &rapb.ReportRequest{}
		if proto.Unmarshal(wire, req) != nil {
			return
		}
		events := &eventList{}
		s.reports = newReports(events)
		if _, err := s.Report(ctx, req); err != nil {
			if len(events.all) > 0 || errors.Is(err, issuer.Failed) {
				t.Fatalf("%d events, error %v", len(events.all), err)
			}
			return
		}
		e := events.all[0]
		if e.Pod != web || !e.Reason.IsKnown() || len(e.Volume) > 63 {
			t.Fatalf("%+v", e)
		}
		checkText(t, e.Message)
	})
}
