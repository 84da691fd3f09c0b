package renewal

import (
	"strconv"
	"testing"
	"time"
)

var start = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func TestDue(t *testing.T) {
	for name, test := range map[string]struct {
		lifetime, before time.Duration
		earliest, latest time.Duration // after start
	}{
		"two thirds":                {24 * time.Hour, 0, 14*time.Hour + 24*time.Minute, 17*time.Hour + 36*time.Minute},
		"renew-before":              {24 * time.Hour, 12 * time.Hour, 10*time.Hour + 48*time.Minute, 13*time.Hour + 12*time.Minute},
		"a short window":            {24 * time.Hour, time.Hour, 22*time.Hour + 30*time.Minute, 23*time.Hour + 30*time.Minute},
		"a CA that gives less":      {time.Hour, 2 * time.Hour, 36 * time.Minute, 44 * time.Minute},
		"exactly the lifetime":      {time.Hour, time.Hour, 36 * time.Minute, 44 * time.Minute},
		"seconds":                   {6 * time.Second, 0, 3600 * time.Millisecond, 4400 * time.Millisecond},
		"not a nanosecond lifetime": {0, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			v := Validity{Issued: start, NotAfter: start.Add(test.lifetime), Before: test.before}
			if got := v.Due().Sub(start); got != test.earliest {
				t.Errorf("earliest %s, want %s", got, test.earliest)
			}
			v.Spread = 1
			if got := v.Due().Sub(start); got != test.latest {
				t.Errorf("latest %s, want %s", got, test.latest)
			}
		})
	}
}

func TestRetry(t *testing.T) {
	day := Validity{Issued: start, NotAfter: start.Add(24 * time.Hour)}
	for name, test := range map[string]struct {
		validity Validity
		failures int
		now      time.Time
		want     time.Duration
	}{
		"the first":             {day, 1, start.Add(16 * time.Hour), time.Second},
		"the fifth":             {day, 5, start.Add(16 * time.Hour), 16 * time.Second},
		"never over 5 min":      {day, 20, start.Add(17 * time.Hour), 5 * time.Minute},
		"no overflow":           {day, 1 << 40, start.Add(17 * time.Hour), 5 * time.Minute},
		"an eighth of the rest": {day, 20, start.Add(24*time.Hour - 8*time.Minute), time.Minute},
		"long expired":          {day, 20, start.Add(48 * time.Hour), 5 * time.Minute},
		"a five-minute lifetime, expired": {
			Validity{Issued: start, NotAfter: start.Add(5 * time.Minute)}, 20, start.Add(time.Hour), 12500 * time.Millisecond},
		"limited, expired": {
			Validity{Issued: start, NotAfter: start.Add(10 * time.Second), LimitedBy: "the root", LeafNotAfter: start.Add(24 * time.Hour)}, 20, start.Add(time.Hour), 5 * time.Minute},
		"limited, not expired": {
			Validity{Issued: start, NotAfter: start.Add(time.Hour), LimitedBy: "the root", LeafNotAfter: start.Add(24 * time.Hour)}, 20, start.Add(44 * time.Minute), 2 * time.Minute},
		"of a certificate that cannot be read": {Validity{}, 1 << 40, start, 5 * time.Minute},
		"hardly any time": {
			Validity{Issued: start, NotAfter: start.Add(time.Second)}, 3, start.Add(time.Second - time.Millisecond), leastRetry},
	} {
		t.Run(name, func(t *testing.T) {
			if got := test.validity.Retry(test.failures, test.now, 0); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
			if got := test.validity.Retry(test.failures, test.now, 1); got != test.want/2 {
				t.Errorf("with jitter %s, want %s", got, test.want/2)
			}
		})
	}
}

// Whenever an outage begins, at least eight attempts fit in before the expiry.
func TestEightAttemptsBeforeExpiry(t *testing.T) {
	for _, lifetime := range []time.Duration{10 * time.Second, 5 * time.Minute, 24 * time.Hour, 30 * 24 * time.Hour} {
		v := Validity{Issued: start, NotAfter: start.Add(lifetime)}
		v.Spread = 1
		now, tries := v.Due(), 1
		for failures := 1; ; failures++ {
			now = now.Add(v.Retry(failures, now, 0))
			if !now.Before(v.NotAfter) {
				break
			}
			tries++
		}
		if tries < triesBeforeExpiry {
			t.Errorf("lifetime %s: %d attempts", lifetime, tries)
		}
	}
}

// No renewal comes sooner than MinInterval after the last one. Renewals that MinInterval
// delays are spread, too, and a certificate never expires because of it.
func TestMinInterval(t *testing.T) {
	for name, test := range map[string]struct {
		lifetime, before time.Duration
		earliest, latest time.Duration // after start
	}{
		"shorter than the wait anyway": {24 * time.Hour, 0, 14*time.Hour + 24*time.Minute, 17*time.Hour + 36*time.Minute},
		"longer":                       {5 * time.Minute, 270 * time.Second, time.Minute, 66 * time.Second},
		"within the spread":            {5 * time.Minute, 235 * time.Second, time.Minute, 73 * time.Second},
		"longer than half of the lifetime": {
			time.Minute, 54 * time.Second, 30 * time.Second, 31200 * time.Millisecond},
		"longer than the lifetime": {6 * time.Second, 0, 3600 * time.Millisecond, 4400 * time.Millisecond},
		"no lifetime":              {0, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			v := Validity{Issued: start, NotAfter: start.Add(test.lifetime), Before: test.before, MinInterval: time.Minute}
			if got := v.Due().Sub(start); got != test.earliest {
				t.Errorf("earliest %s, want %s", got, test.earliest)
			}
			v.Spread = 1
			if got := v.Due().Sub(start); got != test.latest {
				t.Errorf("latest %s, want %s", got, test.latest)
			}
		})
	}
	for lifetime := time.Second; lifetime < time.Hour; lifetime += time.Second {
		for _, before := range []time.Duration{0, lifetime / 100, lifetime / 2, lifetime * 9 / 10} {
			v := Validity{Issued: start, NotAfter: start.Add(lifetime), Before: before, MinInterval: time.Hour, Spread: 0.999}
			if left := v.NotAfter.Sub(v.Due()); left < min(lifetime/4, before/2) || left <= 0 {
				t.Errorf("lifetime %s, renew-before %s: only %s remain after the renewal is due", lifetime, before, left)
			}
		}
	}
}

// The effective expiry decides when a renewal is due; the lifetime is the certificate's own.
func TestLimited(t *testing.T) {
	v := Validity{Issued: start, NotAfter: start.Add(time.Hour), MinInterval: time.Minute, Spread: 0.5}
	if v.Lifetime() != time.Hour {
		t.Errorf("lifetime %s", v.Lifetime())
	}
	v.LimitedBy, v.LeafNotAfter, v.NotAfter = "the intermediate", v.NotAfter, start.Add(9*time.Minute)
	if due := v.Due().Sub(start); due != 6*time.Minute || v.Lifetime() != time.Hour || v.Earliest() != start.Add(time.Minute) {
		t.Errorf("due after %s, lifetime %s, not before %s", due, v.Lifetime(), v.Earliest())
	}
	v.NotAfter = start.Add(10 * time.Second)
	if v.Earliest() != start.Add(5*time.Second) {
		t.Errorf("not before %s", v.Earliest())
	}
}

// Consecutive serial numbers spread evenly.
func TestSpreadOf(t *testing.T) {
	const count, parts = 10000, 10
	var found [parts]int
	for i := range count {
		found[int(SpreadOf(strconv.Itoa(1000000+i))*parts)]++
	}
	for i, n := range found {
		if n < count/parts*8/10 || n > count/parts*12/10 {
			t.Errorf("%d serial numbers in part %d", n, i)
		}
	}
	if SpreadOf("1") != SpreadOf("1") {
		t.Error("SpreadOf is not deterministic")
	}
}
