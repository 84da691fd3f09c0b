package crash

import (
	"testing"
	"time"

	"github.com/flexstack/step-csi/test/embeddedca"
	"github.com/flexstack/step-csi/test/node"
)

// victim is a node whose plugin is killed, or has system calls that fail.
type victim struct {
	*node.Node
	calls *interceptor // of the process, if it is intercepted
}

// newVictim makes a node whose plugin is configured for the CA, and asks it for
// roots every second. It is not started.
func newVictim(t testing.TB, ca *embeddedca.CA) *victim {
	t.Helper()
	n := &victim{Node: node.New(t, binary, ca)}
	n.RefreshRoots(time.Second)
	t.Cleanup(n.kill)
	return n
}

// start starts the plugin, and waits until it answers, with a CA or without.
func (n *victim) start() {
	n.T.Helper()
	n.Launch()
	n.WaitServing()
}

// startIntercepted starts the plugin so that decide says what becomes of its
// system calls, until n.calls is set to something else. Without decide, it waits
// until the plugin answers.
func (n *victim) startIntercepted(decide func(call) verdict) {
	n.T.Helper()
	n.Process = n.Command()
	n.calls = intercept(n.T, n.Process, decide)
	n.Until = n.calls.alive // a call does not wait for the next process
	if decide == nil {
		n.WaitServing()
	}
}

// ended waits for the end of a process that is being killed.
func (n *victim) ended() {
	if n.Process != nil {
		_ = n.Wait()
	}
	n.notIntercepted()
}

func (n *victim) notIntercepted() {
	if n.calls != nil {
		<-n.calls.alive.Done()
		n.calls, n.Until = nil, nil
	}
}

func (n *victim) kill() {
	n.Kill()
	n.notIntercepted()
}

// stop ends the plugin as the end of its pod does. It leaves nothing of its own.
func (n *victim) stop() {
	n.T.Helper()
	n.Stop()
	n.notIntercepted()
	n.ExpectNothingLeft()
}
