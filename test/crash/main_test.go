// Package crash kills the real binary, as users get it, at every moment, and lets
// every system call of its mount and file work fail.
package crash

import (
	"flag"
	"os"
	"testing"

	"github.com/flexstack/step-csi/test/embeddedca"
	"github.com/flexstack/step-csi/test/node"
	"github.com/flexstack/step-csi/test/sandbox"
)

// binary is step-csi, built once for all tests. It has no race detector, with
// which it would take long to start.
var binary node.Binary

var (
	soak = flag.Duration("soak", 0, "how long to kill at random, instead of a thousand times in at most two minutes")
	seed = flag.Uint64("seed", 0, "seed of everything random, to repeat a run; 0 is a new seed")
)

func TestMain(m *testing.M) {
	execIntercepted() // does not return in a process that is to be intercepted
	sandbox.Enter()
	// Most tests wait for another process. Random kills are made before, alone: they
	// need the whole machine.
	if err := flag.Lookup("test.parallel").Value.Set("4"); err != nil {
		panic(err)
	}
	os.Exit(node.Run(m, &binary, false))
}

func startCA(t testing.TB) *embeddedca.CA {
	t.Helper()
	ca, err := embeddedca.Start(embeddedca.Config{})
	node.Must(t, err)
	t.Cleanup(ca.Stop)
	return ca
}
