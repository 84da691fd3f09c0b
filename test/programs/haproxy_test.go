package programs

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flexstack/step-csi/test/node"
)

func TestHAProxy(t *testing.T) {
	t.Parallel()
	haproxy(t, true, nil)
}

// TestHAProxyRuntimeAPI does not replace the roots: HAProxy 2.6.12 crashes at the second
// "commit ssl ca-file".
func TestHAProxyRuntimeAPI(t *testing.T) {
	t.Parallel()
	haproxy(t, false, func(s *site) {
		path := s.tls.file("bundle.pem")
		bundle, err := os.ReadFile(path)
		node.Must(s.t, err)
		s.haproxyAPI(fmt.Sprintf("set ssl cert %s <<\n%s\n", path, bundle), "Transaction created for")
		s.haproxyAPI(fmt.Sprintf("commit ssl cert %s\n", path), "Success!")
	})
}

// haproxy tests HAProxy below step-csi-reload, or alone, with reload.
func haproxy(t *testing.T, withReload bool, reload func(*site)) {
	t.Helper()
	page := documented(t, "HAProxy")
	server{
		section:      "HAProxy",
		as:           account{uid: 99, fsGroup: 99},
		volume:       page.attributes(0),
		clientAs:     account{uid: 10001, fsGroup: 10001},
		clientVolume: map[string]string{"service-names": "client"},
		start: func(s *site) {
			path := filepath.Join(s.directory, "haproxy.cfg")
			write(t, s.as, path, "global\n stats socket "+s.haproxySocket()+" level admin\n"+
				"defaults\n timeout connect 1m\n timeout client 1m\n timeout server 1m\n"+
				strings.Replace(page.code("haproxy", 0, s.tls.path), "bind :8443", "bind 127.0.0.1:"+s.port, 1)+
				"backend app\n mode http\n http-request return status 200\n")
			command := page.code("sh", 0, s.tls.path, "/usr/local/etc/haproxy/haproxy.cfg", path)
			if !withReload {
				_, command, _ = strings.Cut(command, " -- ") // without step-csi-reload
			}
			s.run(shell(command)...)
		},
		reload:       reload,
		use:          (*site).curl,
		refusal:      cutOff,
		followsRoots: withReload,
	}.test(t)
}

func (s *site) haproxySocket() string { return filepath.Join(s.directory, "api") }

// haproxyAPI sends a command to the runtime API. The response must contain the text.
func (s *site) haproxyAPI(command, text string) {
	s.t.Helper()
	connection, err := net.Dial("unix", s.haproxySocket())
	node.Must(s.t, err)
	defer connection.Close()
	node.Must(s.t, connection.SetDeadline(time.Now().Add(time.Minute)))
	_, err = io.WriteString(connection, command)
	node.Must(s.t, err)
	response, err := io.ReadAll(connection)
	node.Must(s.t, err)
	if !bytes.Contains(response, []byte(text)) {
		first, _, _ := strings.Cut(command, "\n")
		s.t.Fatalf("HAProxy responds to %q: %s", first, response)
	}
}
