package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"

	"github.com/flexstack/step-csi/issuer"
)

// eventsAPI is an API server that stores events by their names, or answers with a status.
type eventsAPI struct {
	mu      sync.Mutex
	events  map[string]core.Event
	answer  *meta.Status
	request string
}

func (a *eventsAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	strict := json.NewDecoder(bytes.NewReader(body))
	strict.DisallowUnknownFields()
	a.request = r.Method + " " + r.URL.Path
	event := core.Event{}
	status := a.answer
	if err := strict.Decode(&event); err != nil || event.Kind != "Event" || event.APIVersion != "v1" || r.Header.Get("Content-Type") != "application/json" {
		status = &meta.Status{Code: http.StatusBadRequest, Reason: meta.StatusReasonBadRequest, Message: fmt.Sprint(err)}
	} else if _, exists := a.events[event.Name]; exists && status == nil {
		status = &meta.Status{Code: http.StatusConflict, Reason: meta.StatusReasonAlreadyExists}
	}
	w.Header().Set("Content-Type", "application/json")
	if status != nil {
		status.APIVersion, status.Kind, status.Status = "v1", "Status", meta.StatusFailure
		w.WriteHeader(int(status.Code))
		_ = json.NewEncoder(w).Encode(status)
		return
	}
	a.events[event.Name] = event
	w.WriteHeader(http.StatusCreated)
	_, _ = w.Write(body)
}

func startEventsAPI(t *testing.T) (*eventsAPI, *Events) {
	t.Helper()
	api := &eventsAPI{events: map[string]core.Event{}}
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	events, err := NewEvents(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	return api, events
}

var failingTLS = Event{Pod: web, Reason: issuer.RenewalFailing, Volume: "tls", Message: `volume "tls": it fails`}

// kubectl describe pod finds an event by the pod's name, namespace and UID.
func TestEventIsAboutThePod(t *testing.T) {
	api, events := startEventsAPI(t)
	if err := events.Record(t.Context(), failingTLS); err != nil {
		t.Fatal(err)
	}
	if want := "POST /api/v1/namespaces/shop/events"; api.request != want || len(api.events) != 1 {
		t.Fatalf("request %s, want %s; %d events", api.request, want, len(api.events))
	}
	for name, e := range api.events {
		want := core.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: "shop", Name: "web-0", UID: "uid-web-0"}
		if e.InvolvedObject != want || e.Namespace != "shop" || e.Type != "Warning" || e.Reason != "RenewalFailing" || e.Message != failingTLS.Message {
			t.Errorf("%+v", e)
		}
		if e.Source != (core.EventSource{Component: "step-csi", Host: "node-1"}) || e.ReportingController != "step-csi" || e.ReportingInstance != "node-1" ||
			e.Count != 1 || time.Since(e.FirstTimestamp.Time) > time.Hour || !e.LastTimestamp.Equal(&e.FirstTimestamp) {
			t.Errorf("%+v", e)
		}
		if !strings.HasPrefix(name, "web-0.step-csi-") {
			t.Errorf("the name is %s", name)
		}
	}
	good := failingTLS
	good.Reason = issuer.CertificateRenewed
	if got := good.object(time.Now()).Type; got != "Normal" {
		t.Errorf("the type of good news is %s", got)
	}
}

// Within half an hour, a pod gets one event of a reason for a volume, whatever the text
// and whichever replica makes it.
func TestRepeatedReportsMakeOneEvent(t *testing.T) {
	api, events := startEventsAPI(t)
	other := *events // of another replica
	for _, e := range []*Events{events, &other} {
		again := failingTLS
		again.Message += " again"
		for _, event := range []Event{failingTLS, again} {
			if err := e.Record(t.Context(), event); err != nil {
				t.Error(err)
			}
		}
	}
	if n := len(api.events); n < 1 || n > 2 { // two, if half an hour ended meanwhile
		t.Errorf("%d events", n)
	}
	names := map[string]bool{}
	at := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, change := range []func(*Event){
		func(*Event) {},
		func(e *Event) { e.Reason = issuer.CertificateExpired },
		func(e *Event) { e.Volume = "other" },
		func(e *Event) { e.Pod.UID = "uid-of-the-next-web-0" },
	} {
		e := failingTLS
		change(&e)
		names[e.name(at)] = true
		names[e.name(at.Add(eventInterval-time.Second))] = true // the same
		names[e.name(at.Add(eventInterval))] = true
	}
	if len(names) != 8 {
		t.Errorf("%d names, want 8: %v", len(names), names)
	}
}

// The names of events are valid for all names of pods.
func TestNamesOfEvents(t *testing.T) {
	for _, pod := range []string{"a", strings.Repeat("a", 253), strings.Repeat("a-", 126) + "a", strings.Repeat("a.", 126) + "a"} {
		e := failingTLS
		for n := range 20 {
			e.Pod.Name = pod[min(n, len(pod)-1):]
			if e.Pod.Name[0] == '-' || e.Pod.Name[0] == '.' {
				continue
			}
			name := e.name(time.Now())
			if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
				t.Errorf("%s: %v", name, problems)
			}
		}
	}
}

// The outcome of an error decides whether node plugins ask again.
func TestErrorsOfEvents(t *testing.T) {
	for name, test := range map[string]struct {
		answer meta.Status
		want   issuer.Outcome
	}{
		"no right": {meta.Status{Code: http.StatusForbidden, Reason: meta.StatusReasonForbidden}, issuer.Unsupported},
		"the namespace is being deleted": {meta.Status{Code: http.StatusForbidden, Reason: meta.StatusReasonForbidden,
			Details: &meta.StatusDetails{Causes: []meta.StatusCause{{Type: core.NamespaceTerminatingCause}}}}, issuer.Denied},
		"no namespace": {meta.Status{Code: http.StatusNotFound, Reason: meta.StatusReasonNotFound}, issuer.Denied},
		"invalid":      {meta.Status{Code: http.StatusUnprocessableEntity, Reason: meta.StatusReasonInvalid}, issuer.Denied},
		"error":        {meta.Status{Code: http.StatusInternalServerError, Reason: meta.StatusReasonInternalError}, issuer.Unavailable},
		"no token":     {meta.Status{Code: http.StatusUnauthorized, Reason: meta.StatusReasonUnauthorized}, issuer.Unavailable},
	} {
		api, events := startEventsAPI(t)
		api.answer = &test.answer
		if err := events.Record(t.Context(), failingTLS); issuer.OutcomeOf(err) != test.want {
			t.Errorf("%s: outcome %v: %v", name, issuer.OutcomeOf(err), err)
		}
	}
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close()
	events, err := NewEvents(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	if err := events.Record(t.Context(), failingTLS); issuer.OutcomeOf(err) != issuer.Unavailable {
		t.Errorf("down: %v", err)
	}
}

// An API server that does not answer takes a report 5 seconds.
func TestHangingEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		events, err := NewEvents(&rest.Config{Host: "http://localhost", Transport: hanging{}})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		err = events.Record(t.Context(), failingTLS)
		if took := time.Since(began); took != eventTimeout || issuer.OutcomeOf(err) != issuer.Unavailable || !strings.Contains(err.Error(), "no answer in time") {
			t.Errorf("after %s: %v", took, err)
		}
	})
}

// hanging is a transport that never answers.
type hanging struct{}

func (hanging) RoundTrip(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}
