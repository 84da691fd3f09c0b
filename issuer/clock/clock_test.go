package clock_test

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flexstack/step-csi/issuer/clock"
)

func TestComparison(t *testing.T) {
	for name, test := range map[string]struct {
		ahead, took time.Duration
		want        string
		differ      bool
	}{
		"the same":      {0, 10 * time.Millisecond, "the clocks of the CA and of this machine agree", false},
		"ahead":         {3 * time.Minute, 0, "the clock of the CA is 3m0s ahead of this machine's", false},
		"behind":        {-90 * time.Second, 0, "the clock of the CA is 1m30s behind this machine's", false},
		"far ahead":     {48 * time.Hour, 0, "the clock of the CA is 48h0m0s ahead of this machine's", true},
		"far behind":    {-6 * time.Minute, 2 * time.Second, "the clock of the CA is 6m1s behind this machine's", true},
		"a slow answer": {3 * time.Second, 20 * time.Second, "the clocks of the CA and of this machine agree", false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var c clock.Comparison
				sent := time.Now()
				// A server reads its clock once per second.
				date := sent.Add(test.ahead).UTC().Format(http.TimeFormat)
				time.Sleep(test.took + 500*time.Millisecond)
				c.Observe(date, sent)
				c.Observe("yesterday", sent)
				c.Observe("", sent)
				if got := c.Describe("CA"); got != test.want || c.Differ() != test.differ {
					t.Errorf("%q, differ %v; want %q, %v", got, c.Differ(), test.want, test.differ)
				}
			})
		})
	}
	var unknown clock.Comparison
	if got, want := unknown.Describe("CA"), "compare the clocks of the CA and of this machine: date -u"; got != want || unknown.Differ() {
		t.Errorf("%q, want %q", got, want)
	}
}
