package loopback

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
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

// Processes that are started meanwhile do not keep a server from its port.
func TestListenAgainWhileProcessesStart(t *testing.T) {
	address, err := Address(IP)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var starting sync.WaitGroup
	for range 4 {
		starting.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if err := exec.Command("/bin/true").Run(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 300 {
		listener, err := ListenAgain(address)
		if err != nil {
			t.Fatal(err)
		}
		listener.Close()
	}
	close(done)
	starting.Wait()
}
