package server

import (
	"fmt"
	"math"
	"time"

	"github.com/flexstack/step-csi/issuer"
)

// oldestRoots is the least age at which a replica no longer answers roots. It is longer
// than a CA takes to restart.
const oldestRoots = 2 * time.Minute

// age returns how long ago the CA was asked for the roots. The monotonic clock stands
// still while the machine is suspended, so the wall clock counts if it says more.
func age(roots issuer.Roots) time.Duration {
	now := time.Now()
	return max(now.Sub(roots.Asked), now.Round(0).Sub(roots.Asked.Round(0)))
}

// ageMilliseconds returns the age for an answer, at most 49 days.
func ageMilliseconds(roots issuer.Roots) uint32 {
	return uint32(min(age(roots).Milliseconds(), math.MaxUint32))
}

// checkAge returns an error if the roots are too old to answer. The outcome is
// Unavailable, so that node plugins ask another replica: this one may have lost its way
// to the CA, and they remove a new root from all pods if they believe it. A few requests
// for roots may fail, with the interval refresh between them.
func checkAge(roots issuer.Roots, refresh time.Duration) error {
	oldest := max(5*refresh, oldestRoots)
	if old := age(roots); old > oldest {
		return issuer.Unavailable.Because(fmt.Errorf("the CA answered its roots to this replica %s ago, which is longer than %s; "+
			"the replica's log says why it does not reach the CA", old.Round(time.Second), oldest))
	}
	return nil
}
