package schedule

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/flexstack/step-csi/issuer/renewal"
)

// Greedy pods ask for more than a slow CA can sign, so that some of their certificates are
// always about to expire. These take at most every other turn: the certificates of other
// pods are renewed long before they become urgent.
func TestOverloadByGreedyPods(t *testing.T) {
	virtually(t, func(n *node) {
		n.takes = 10 * time.Second // so slow that the limiter admits one call at a time
		greedily := func(name string) renewal.Validity {
			v := issuedAt(time.Now(), 5*time.Minute, name)
			v.Before, v.MinInterval = 270*time.Second, time.Minute
			return v
		}
		for i := range 3 * 32 {
			name := fmt.Sprint("greedy-", i)
			n.Add(fmt.Sprint("greedy-", i/32), greedily(name), func(ctx context.Context) (renewal.Validity, error) {
				err := n.ask(ctx, Renewal, name)
				return greedily(name), err
			})
		}
		for name, lifetime := range map[string]time.Duration{"a": 3 * time.Hour, "b": day, "c": 6 * time.Hour} {
			n.keep(name, issuedAt(time.Now(), lifetime, name))
		}
		late := map[string]time.Duration{}
		for range 24 * 60 * 4 {
			time.Sleep(15 * time.Second)
			for name, e := range n.entries {
				late[name] = max(late[name], time.Since(e.State().Validity.Due()))
			}
		}
		for name, d := range late {
			if d > 20*time.Minute {
				t.Errorf("the renewal of %s was %s late", name, d)
			}
		}
		if calls := len(n.calls()); calls < 24*360 {
			t.Errorf("only %d renewals: the CA was not overloaded", calls)
		}
	})
}
