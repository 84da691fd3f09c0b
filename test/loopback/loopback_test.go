package loopback

import (
	"fmt"
	"net"
	"os"
	"testing"
)

// Other processes have all blocks of ports but one. Each port of this one is given to one
// server, and after the last, the first again.
func TestPortsOfOtherProcesses(t *testing.T) {
	const free = 7
	p := &pool{name: fmt.Sprintf("@step-csi-test-ports-of-%d-", os.Getpid())}
	for block := range blocks {
		if block == free {
			continue
		}
		other, err := net.Listen("unix", p.name+fmt.Sprint(block))
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
	}
	for i := range 2 * blockSize {
		port, err := p.port()
		if want := firstPort + free*blockSize + i%blockSize; err != nil || port != want {
			t.Fatalf("got the port %d, %v, want %d", port, err, want)
		}
	}
	if err := (&pool{name: p.name}).claim(); err == nil {
		t.Error("two processes have the same ports")
	}
	for _, claim := range p.claims {
		claim.Close()
	}
}
