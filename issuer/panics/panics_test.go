package panics_test

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"

	"github.com/flexstack/step-csi/issuer/panics"
)

// logging returns a context whose logger writes to the buffer.
func logging(t *testing.T) (context.Context, *bytes.Buffer) {
	log := &bytes.Buffer{}
	return klog.NewContext(t.Context(), textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(log)))), log
}

func TestPanicBecomesAnError(t *testing.T) {
	ctx, log := logging(t)
	before := panics.Total()
	failing := func() (err error) {
		defer panics.Recover(ctx, "renew the volume", &err)
		panic("token abc")
	}
	err := failing()
	if err == nil || !strings.HasPrefix(err.Error(), "renew the volume: ") || !strings.Contains(err.Error(), "defect of step-csi") || strings.Contains(err.Error(), "token abc") {
		t.Errorf("error %v", err)
	}
	if got := panics.Total() - before; got != 1 {
		t.Errorf("counted %d panics", got)
	}
	for _, want := range []string{`"Panic recovered"`, `err="token abc"`, `in="renew the volume"`, "TestPanicBecomesAnError"} {
		if strings.Count(log.String(), want) == 0 {
			t.Errorf("the log lacks %s:\n%s", want, log)
		}
	}
	if count := strings.Count(log.String(), "Panic recovered"); count != 1 {
		t.Errorf("logged %d times", count)
	}
}

func TestWithoutPanicNothingHappens(t *testing.T) {
	ctx, log := logging(t)
	before := panics.Total()
	refused := context.Canceled
	fine := func() (err error) {
		defer panics.Recover(ctx, "sign", &err)
		return refused
	}
	if err := fine(); err != refused || panics.Total() != before || log.Len() > 0 {
		t.Errorf("error %v, %d panics, log %s", err, panics.Total()-before, log)
	}
}

func TestPanicWithoutAnError(t *testing.T) {
	ctx, log := logging(t)
	func() {
		defer panics.Recover(ctx, "watch", nil)
		panic("broken")
	}()
	if !strings.Contains(log.String(), `err="broken"`) {
		t.Errorf("log %s", log)
	}
}
