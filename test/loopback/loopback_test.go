package loopback

import (
	"fmt"
	"net"
	"testing"
)

// Other processes of tests have all other ports. This one gives each of its ports to one
// server, and begins again after the last.
func TestPortsOfOtherProcesses(t *testing.T) {
	address := func() string {
		t.Helper()
		address, err := Address(IP)
		if err != nil {
			t.Fatal(err)
		}
		return address
	}
	given := map[string]bool{address(): true}
	for block := range blocks {
		// This process, or a real other one, may have the block.
		if other, err := net.Listen("unix", fmt.Sprintf("@step-csi-test-ports-%d", block)); err == nil {
			defer other.Close()
		}
	}
	mine := len(own.claims) * blockSize
	for range mine - 1 {
		if next := address(); given[next] {
			t.Fatalf("%s is given to two servers", next)
		} else {
			given[next] = true
		}
	}
	if again := address(); !given[again] {
		t.Errorf("%s is a port of another process", again)
	}
}
