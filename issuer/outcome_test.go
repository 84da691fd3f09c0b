package issuer

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
)

// Every outcome has a row in the table, with its own label and text.
func TestOutcomes(t *testing.T) {
	labels, texts := map[string]bool{}, map[string]bool{}
	for _, o := range Outcomes() {
		if o.Label() == "" || o.Error() == "" || labels[o.Label()] || texts[o.Error()] {
			t.Errorf("outcome %d: label %q, text %q", int(o), o.Label(), o.Error())
		}
		labels[o.Label()], texts[o.Error()] = true, true
		if (o == OK) != (o.CSICode() == codes.OK) || (o == OK) != (o.RACode() == codes.OK) {
			t.Errorf("%v: codes %v and %v", o, o.CSICode(), o.RACode())
		}
		if o.Answered() && o.IsDown() {
			t.Errorf("%v: the outcome says that the issuer is down and that it answered", o)
		}
	}
	if len(labels) != int(Failed)+1 {
		t.Errorf("%d rows in the table", len(labels))
	}
}

// A pod without a token, a pod over its rate limit and a caller that gave up say
// nothing about the issuer's availability.
func TestOneVolumeDoesNotTakeTheIssuerDown(t *testing.T) {
	for _, o := range []Outcome{Denied, Throttled, NoPodToken, Canceled, InvalidAnswer, Failed} {
		if o.IsDown() {
			t.Errorf("%v", o)
		}
	}
}

func TestOutcomeOf(t *testing.T) {
	for want, err := range map[Outcome]error{
		OK:     nil,
		Denied: fmt.Errorf("issuer default: %w", fmt.Errorf("%w: %w", Denied, errors.New("no"))),
		Failed: errors.New("no outcome"),
	} {
		if got := OutcomeOf(err); got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}

func TestEnded(t *testing.T) {
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	expired, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	<-expired.Done()
	if Ended(canceled) != Canceled || Ended(expired) != Unavailable {
		t.Errorf("canceled context: %v; expired context: %v", Ended(canceled), Ended(expired))
	}
}
