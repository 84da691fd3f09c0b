package server

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
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
	// namespaceTerminating is the cause of an error: NamespaceTerminatingCause in
	// k8s.io/api/core/v1.
	namespaceTerminating meta.CauseType = "NamespaceTerminating"
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
	scheme, version := runtime.NewScheme(), schema.GroupVersion{Version: "v1"}
	meta.AddToGroupVersion(scheme, version) // the type of errors
	c = rest.CopyConfig(c)
	c.APIPath = "/api"
	c.GroupVersion = &version
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
	body, err := json.Marshal(event.object(time.Now()))
	if err != nil {
		return err
	}
	request := e.client.Post().Namespace(event.Pod.Namespace).Resource("events").Body(body)
	err = request.SetHeader("Content-Type", runtime.ContentTypeJSON).Do(ctx).Error()
	var answered *apierrors.StatusError
	switch {
	case err == nil, apierrors.IsAlreadyExists(err):
		return nil
	case apierrors.HasStatusCause(err, namespaceTerminating), apierrors.IsNotFound(err), apierrors.IsInvalid(err), apierrors.IsBadRequest(err):
		return fmt.Errorf("%w: create an event at the API server: %w", issuer.Denied, err)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%w: %w", errEventsForbidden, err)
	case errors.Is(err, context.DeadlineExceeded):
		err = fmt.Errorf("no answer in time: %w", err)
	}
	if !errors.As(err, &answered) {
		err = proxies.Explain(err, request.URL())
	}
	return issuer.Ended(ctx).Because(fmt.Errorf("cannot create an event at the API server: %w", err))
}

// eventObject has the fields of an Event of the core API group that the server sets. The
// type in k8s.io/api/core/v1 would add 5 MB to the program.
type eventObject struct {
	APIVersion string      `json:"apiVersion"`
	Kind       string      `json:"kind"`
	Metadata   objectName  `json:"metadata"`
	Involved   podIdentity `json:"involvedObject"`
	Reason     string      `json:"reason"`
	Message    string      `json:"message"`
	Type       string      `json:"type"`
	Source     struct {
		Component string `json:"component"`
		Host      string `json:"host"`
	} `json:"source"`
	First               meta.Time `json:"firstTimestamp"`
	Last                meta.Time `json:"lastTimestamp"`
	Count               int       `json:"count"`
	ReportingController string    `json:"reportingComponent"`
	ReportingInstance   string    `json:"reportingInstance"`
}

type objectName struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

type podIdentity struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	objectName
	UID string `json:"uid"`
}

// object is the event as the API server stores it. kubectl describe shows component and
// host as its source.
func (e Event) object(now time.Time) eventObject {
	o := eventObject{
		APIVersion: "v1", Kind: "Event", Metadata: objectName{e.Pod.Namespace, e.name(now)},
		Involved: podIdentity{APIVersion: "v1", Kind: "Pod", objectName: objectName{e.Pod.Namespace, e.Pod.Name}, UID: e.Pod.UID},
		Reason:   string(e.Reason), Message: e.Message, Type: "Normal",
		First: meta.NewTime(now), Last: meta.NewTime(now), Count: 1,
		ReportingController: "step-csi", ReportingInstance: e.Pod.Node,
	}
	if e.Reason.IsWarning() {
		o.Type = "Warning"
	}
	o.Source.Component, o.Source.Host = "step-csi", e.Pod.Node
	return o
}

// name is the same for all events of a reason for a volume of the pod in eventInterval.
func (e Event) name(now time.Time) string {
	const longest = 253 // bytes, of a DNS subdomain
	same := fmt.Sprintf("%q %q %q %d", e.Pod.UID, e.Reason, e.Volume, now.Unix()/int64(eventInterval/time.Second))
	suffix := fmt.Sprintf(".step-csi-%x", sha256.Sum256([]byte(same)))[:len(".step-csi-")+16]
	pod := e.Pod.Name[:min(len(e.Pod.Name), longest-len(suffix))]
	return strings.TrimRight(pod, "-.") + suffix
}
