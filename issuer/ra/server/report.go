package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"unicode"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/ra/rapb"
)

// maxEventMessage bounds the message of an event, in bytes: Kubernetes' own limit.
const maxEventMessage = 1 << 10

// Events are no part of issuing, and reports must not slow it down. A node plugin makes
// at most 16 reports a minute, and repeats none within half an hour. A node under attack
// can do no more than make a few events of its own pods.
var (
	reportsOfNode = Limit{Rate: 0.5, Burst: 30}
	reportsOfPod  = Limit{Rate: 1.0 / 120, Burst: 8}
	// reportsOfAll bounds the reviews and the events that reports of all nodes cost the
	// API server.
	reportsOfAll = Limit{Rate: 10, Burst: 100}
)

var errNoEvents = fmt.Errorf("%w: the registration authority makes no events of pods (in the chart: ra.events.enabled)", issuer.Unsupported)

// reports is what the server needs for reports.
type reports struct {
	events           EventRecorder // nil if there are no events
	nodes, pods, all *limiter
	denied           atomic.Bool // the API server has denied an event, and the server has logged it
}

func newReports(events EventRecorder) reports {
	return reports{events: events, nodes: newLimiter(reportsOfNode), pods: newLimiter(reportsOfPod), all: newLimiter(reportsOfAll)}
}

// Report implements rapb.RegistrationAuthorityServer.
func (s *Server) Report(ctx context.Context, req *rapb.ReportRequest) (*rapb.ReportResponse, error) {
	reason := issuer.Reason(req.GetReason())
	if !reason.IsKnown() {
		reason = "" // callers could create any number of series
	}
	entry := &auditEntry{"reason", reason}
	err := s.report(ctx, req, entry)
	s.metrics.reports.WithLabelValues(string(reason), code(err).String()).Inc()
	logger := klog.FromContext(ctx)
	switch {
	case err == nil:
		s.reports.denied.Store(false)
		logger.Info("Pod informed by an event", *entry...)
		return &rapb.ReportResponse{}, nil
	case errors.Is(err, errEventsForbidden) && s.reports.denied.CompareAndSwap(false, true):
		logger.Error(err, "Cannot create events of pods; further failures are logged at -v=4")
	case logger.V(4).Enabled():
		entry.logError(ctx, err, "Report denied", "Report failed")
	}
	return nil, err
}

// report makes an event of the pod that the token identifies. The caller decides about
// nothing but the text, and only for pods on its own node.
func (s *Server) report(ctx context.Context, req *rapb.ReportRequest, entry *auditEntry) error {
	caller, reason := callOf(ctx).caller, issuer.Reason(req.GetReason())
	entry.addCaller(caller)
	switch {
	case s.reports.events == nil:
		return errNoEvents
	case !s.reports.nodes.allow(caller.Node):
		return fmt.Errorf("%w: reports of %s", errTooManyOfNode, caller.Node)
	case !reason.IsKnown():
		return fmt.Errorf("%w: the reason %s is unknown", errMalformed, names.Quote(clip(req.GetReason(), maxLoggedName)))
	case names.CheckLabel(req.GetVolume()) != nil:
		return fmt.Errorf("%w: %s is not the name of a volume", errMalformed, names.Quote(clip(req.GetVolume(), maxLoggedName)))
	case !s.reports.all.allow(""):
		return issuer.Unavailable.Because(errors.New("too many reports of all nodes"))
	}
	pod, err := s.runningPod(ctx, caller, req.GetPodToken(), entry)
	switch {
	case err != nil:
		return err
	case !s.reports.pods.allow(pod.UID):
		return fmt.Errorf("%w: reports of %s/%s", issuer.Throttled, pod.Namespace, pod.Name)
	}
	entry.add("volume", req.GetVolume())
	return s.reports.events.Record(ctx, Event{
		Pod: pod, Reason: reason, Volume: req.GetVolume(),
		Message: printable(fmt.Sprintf("volume %q: %s", req.GetVolume(), req.GetText()), maxEventMessage),
	})
}

// printable replaces the characters of a text of a caller that change how a terminal
// shows other text, such as control characters, line ends and those that change the
// direction of writing. It shortens the text to the number of bytes.
func printable(text string, most int) string {
	const more = "…"
	cut := len(text) > most
	if cut {
		text = text[:most-len(more)]
	}
	text = strings.ToValidUTF8(text, "")
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) && r != unicode.ReplacementChar {
			return r
		}
		return ' '
	}, text)
	if cut {
		text += more
	}
	return text
}
