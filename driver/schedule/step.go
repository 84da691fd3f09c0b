package schedule

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/flexstack/step-csi/issuer/renewal"
)

// isReady tells whether the item's renewal is due, and not under way.
func (i *Item) isReady(now time.Time) bool {
	return i.stop == nil && !now.Before(i.due) && !now.Before(i.retry)
}

// isUrgent tells whether the certificate is about to expire. One that has expired
// is not: it is too late for that.
func (i *Item) isUrgent(now time.Time) bool {
	left := i.validity.NotAfter.Sub(now)
	return left > 0 && left < urgent
}

// step begins what is to begin now, and returns how long to wait for the next.
func (l *Line) step(now time.Time) (wait time.Duration) {
	var ready []*Item
	wait = look
	for i := range l.items {
		switch {
		case i.isReady(now):
			ready = append(ready, i)
			// The machine was suspended, the clock was set, or pods had all places.
			if !l.recovering && i.failures == 0 && now.Sub(i.due) > missed {
				l.recover()
			}
		case i.stop == nil:
			wait = min(wait, max(i.due.Sub(now), i.retry.Sub(now)))
		}
	}
	switch {
	case len(ready) == 0:
		l.recovering = l.recovering && l.places.renewals > 0
		return wait
	case l.err != nil:
		return min(wait, l.probe(ready, now))
	case l.recovering:
		return min(wait, l.makeUp(ready, now))
	}
	l.beginAll(byExpiry(ready), now)
	return wait // or for a place
}

// beginAll begins as many as there are places.
func (l *Line) beginAll(items []*Item, now time.Time) {
	for _, i := range items {
		if !l.places.forRenewal(i.isUrgent(now)) {
			return
		}
		l.begin(i, now)
	}
}

// byExpiry sorts the items: what expires first, or has expired, is first.
func byExpiry(items []*Item) []*Item {
	return slices.SortedFunc(slices.Values(items), func(a, b *Item) int { return a.validity.NotAfter.Compare(b.validity.NotAfter) })
}

// probe begins one renewal when it is time to find out whether the issuer answers
// again. The item that has least time left says when; which it is changes, so that
// none that fails for a reason of its own is in the way of others.
func (l *Line) probe(ready []*Item, now time.Time) (wait time.Duration) {
	if l.places.renewals > 0 {
		return look
	}
	pause := renewal.SlowestRetry
	for _, i := range ready {
		pause = min(pause, i.validity.Retry(l.failures, now, l.jitter))
	}
	if wait = l.failed.Add(pause).Sub(now); wait > 0 {
		return wait
	}
	l.begin(slices.MinFunc(ready, func(a, b *Item) int {
		return cmp.Or(cmp.Compare(rank(a, now), rank(b, now)), a.tried.Compare(b.tried), a.validity.NotAfter.Compare(b.validity.NotAfter))
	}), now)
	return look
}

// rank is lower for what is urgent.
func rank(i *Item, now time.Time) int {
	if i.isUrgent(now) {
		return 0
	}
	return 1
}

// recover has what was missed made up for.
func (l *Line) recover() { l.recovering, l.next = true, time.Time{} }

// makeUp begins what is urgent at once, and the rest one by one, at a pace: what
// has expired first.
func (l *Line) makeUp(ready []*Item, now time.Time) (wait time.Duration) {
	sorted := byExpiry(ready)
	l.beginAll(slices.DeleteFunc(slices.Clone(sorted), func(i *Item) bool { return !i.isUrgent(now) }), now)
	rest := slices.DeleteFunc(sorted, func(i *Item) bool { return !i.isReady(now) })
	if len(rest) == 0 || l.places.renewals > 0 {
		return look // until one ends
	}
	if l.next.IsZero() {
		l.next = now.Add(time.Duration(rand.Float64() * float64(gap(rest))))
	}
	if wait = l.next.Sub(now); wait > 0 {
		return wait
	}
	if l.places.forRenewal(false) {
		l.begin(rest[0], now)
		l.next = now.Add(time.Duration((0.5 + rand.Float64()) * float64(gap(rest))))
	}
	return look
}

// gap is the mean time between two of the backlog.
func gap(items []*Item) time.Duration {
	all := backlog
	for _, i := range items {
		if window := i.validity.Window(); window > 0 {
			all = min(all, window/8)
		}
	}
	return min(pace, all/time.Duration(len(items)))
}
