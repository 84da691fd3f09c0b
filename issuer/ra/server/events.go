package server

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"

	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/proxies"
)

const (
	// eventInterval is the time in which a pod gets one event of a reason for a volume.
	// The API server deletes events after an hour.
	eventInterval = 30 * time.Minute
	// eventTimeout bounds a call to the API server. It leaves time for the review of the
	// pod's token.
	eventTimeout = 5 * time.Second
)

// Event is an event of a pod.
type Event struct {
	Pod     issuer.Pod
	Reason  issuer.Reason
	Volume  string
	Message string
}

// EventRecorder makes events of pods.
type EventRecorder interface {
	// Record makes the event, unless the pod has one of this reason for this volume. The
	// error wraps issuer.Unsupported if the server may make no events.
	Record(context.Context, Event) error
}

// Events is an EventRecorder that calls the API server. It remembers nothing: all reports
// of one reason for one volume within eventInterval make an event of the same name, and
// the API server rejects the second one, whichever replica makes it.
type Events struct{ client *rest.RESTClient }

var _ EventRecorder = (*Events)(nil)

// errEventsForbidden means that the process has no right to create events.
var errEventsForbidden = fmt.Errorf("%w: the API server does not allow to create events; give the service account of the registration authority "+
	"the right to create events, or set authority.events: false (in the chart: ra.events.enabled)", issuer.Unsupported)

// NewEvents returns an EventRecorder for the API server of the configuration. The process
// needs the right to create events of the core API group.
func NewEvents(c *rest.Config) (*Events, error) {
	scheme := runtime.NewScheme()
	scheme.AddKnownTypes(core.SchemeGroupVersion, &core.Event{})
	meta.AddToGroupVersion(scheme, core.SchemeGroupVersion)
	c = rest.CopyConfig(c)
	c.APIPath = "/api"
	c.GroupVersion = &core.SchemeGroupVersion
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	c.QPS = -1 // no limit: the server limits the reports
	client, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}
	return &Events{client}, nil
}

// Record implements EventRecorder.
func (e *Events) Record(ctx context.Context, event Event) error {
	ctx, cancel := context.WithTimeout(ctx, eventTimeout)
	defer cancel()
	request := e.client.Post().Namespace(event.Pod.Namespace).Resource("events").Body(event.object(time.Now()))
	err := request.Do(ctx).Error()
	var answered *apierrors.StatusError
	switch {
	case err == nil, apierrors.IsAlreadyExists(err):
		return nil
	case apierrors.HasStatusCause(err, core.NamespaceTerminatingCause), apierrors.IsNotFound(err), apierrors.IsInvalid(err), apierrors.IsBadRequest(err):
		return fmt.Errorf("%w: create an event at the API server: %w", issuer.Denied, err)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%w: %w", errEventsForbidden, err)
	case errors.Is(err, context.DeadlineExceeded):
		err = fmt.Errorf("no answer in time: %w", err)
	}
	if !errors.As(err, &answered) {
		err = proxies.Explain(err, request.URL())
	}
	return fmt.Errorf("%w: create an event at the API server: %w", issuer.Ended(ctx), err)
}

// object is the event as the API server stores it. kubectl describe shows component and
// node as its source.
func (e Event) object(now time.Time) *core.Event {
	kind := core.EventTypeNormal
	if e.Reason.IsWarning() {
		kind = core.EventTypeWarning
	}
	at := meta.NewTime(now)
	return &core.Event{
		ObjectMeta: meta.ObjectMeta{Namespace: e.Pod.Namespace, Name: e.name(now)},
		InvolvedObject: core.ObjectReference{
			APIVersion: "v1", Kind: "Pod", Namespace: e.Pod.Namespace, Name: e.Pod.Name, UID: types.UID(e.Pod.UID),
		},
		Reason: string(e.Reason), Message: e.Message, Type: kind,
		Source:         core.EventSource{Component: reportingController, Host: e.Pod.Node},
		FirstTimestamp: at, LastTimestamp: at, Count: 1,
		ReportingController: reportingController, ReportingInstance: e.Pod.Node,
	}
}

const reportingController = "step-csi"

// name is the same for all events of a reason for a volume of the pod in eventInterval.
func (e Event) name(now time.Time) string {
	const longest = 253 // bytes, of a DNS subdomain
	same := fmt.Sprintf("%q %q %q %d", e.Pod.UID, e.Reason, e.Volume, now.Unix()/int64(eventInterval/time.Second))
	suffix := fmt.Sprintf(".step-csi-%x", sha256.Sum256([]byte(same)))[:len(".step-csi-")+16]
	pod := e.Pod.Name[:min(len(e.Pod.Name), longest-len(suffix))]
	return strings.TrimRight(pod, "-.") + suffix
}
