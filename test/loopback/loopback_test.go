package loopback

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// A port stays that of its server while the server does not listen, in this process and in others.
func TestPortsAreReserved(t *testing.T) {
	if port := os.Getenv("STEP_CSI_PORT"); port != "" {
		var number int
		if _, err := fmt.Sscan(port, &number); err != nil {
			t.Fatal(err)
		}
		fmt.Println("reserve:", reserve(number))
		return
	}
	address, err := Address(IP)
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(address)
	var number int
	fmt.Sscan(port, &number)
	if err := reserve(number); err == nil {
		t.Error("this process gives the port twice")
	}
	other := exec.Command(os.Args[0], "-test.run", "^TestPortsAreReserved$")
	other.Env = append(os.Environ(), "STEP_CSI_PORT="+port)
	if out, err := other.CombinedOutput(); err != nil || !strings.Contains(string(out), "is given to another server") {
		t.Errorf("another process: %v: %s", err, out)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
}
