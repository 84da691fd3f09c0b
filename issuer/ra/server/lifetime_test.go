package server

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/ra/rapb"
)

// A request gets a lifetime within the configured ones. Without configured ones, the CA
// decides; the number in a request never overflows.
func TestRequestedLifetime(t *testing.T) {
	limited := issuer.Lifetimes{Default: 2 * time.Hour, Min: time.Minute, Max: 3 * time.Hour}
	for _, test := range []struct {
		lifetimes issuer.Lifetimes
		seconds   int64
		usual     bool // default_lifetime
		want      time.Duration
		wrong     string
	}{
		{limited, 3600, false, time.Hour, ""},
		{limited, 3 * 3600, false, 3 * time.Hour, ""},
		{limited, 3*3600 + 1, false, 0, "longer than 3h0m0s, the duration.max"},
		{limited, 59, false, 0, "shorter than 1m0s, the duration.min"},
		{limited, 24 * 3600, true, 0, ""},
		{limited, math.MinInt64, true, 0, ""},
		{limited, math.MaxInt64, false, 0, "longer"},
		{issuer.Lifetimes{}, 0, false, 0, "shorter"},
		{issuer.Lifetimes{}, -1, false, 0, "shorter"},
		{issuer.Lifetimes{}, math.MinInt64, false, 0, "shorter"},
		{issuer.Lifetimes{}, 1, false, time.Second, ""},
		{issuer.Lifetimes{}, 1000 * 3600, false, 1000 * time.Hour, ""},
		{issuer.Lifetimes{}, math.MaxInt64/int64(time.Second) + 1, false, 0, "longer than any certificate lives"},
		{issuer.Lifetimes{}, math.MaxInt64, false, 0, "longer than any certificate lives"},
	} {
		i, err := issuer.New(issuer.Config{Signer: &recording{}, Policy: newFuzzed(t, &recording{}).serving.onlyOwn, Lifetimes: test.lifetimes})
		if err != nil {
			t.Fatal(err)
		}
		got, err := Issuer{Issuer: i}.duration(&rapb.SignRequest{DurationSeconds: test.seconds, DefaultLifetime: test.usual})
		if got != test.want || (err == nil) != (test.wrong == "") || err != nil && (!errors.Is(err, issuer.Denied) || !strings.Contains(err.Error(), test.wrong)) {
			t.Errorf("%+v: %s, %v", test, got, err)
		}
	}
}
