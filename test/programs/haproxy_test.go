package programs

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestHAProxy(t *testing.T) {
	t.Parallel()
	haproxy(documented(t, "HAProxy"), nil).test(t)
}

// TestHAProxyRuntimeAPI does not replace the roots: HAProxy 2.6.12 crashes at the second
// "commit ssl ca-file".
func TestHAProxyRuntimeAPI(t *testing.T) {
	t.Parallel()
	page := documented(t, "HAProxy")
	haproxy(page, func(s *site) {
		mustRun(t, s.as, s.directory, "sh", "-ec", page.code("sh", 1, s.tls.path, "/run/haproxy/admin.sock", s.haproxyAPI()))
	}).test(t)
}

// haproxy is HAProxy below step-csi-reload, or if reload is not nil, alone.
func haproxy(page section, reload func(*site)) server {
	return server{
		section:      "HAProxy",
		as:           account{uid: 99, fsGroup: 99},
		volume:       page.attributes(0),
		clientAs:     account{uid: 10001, fsGroup: 10001},
		clientVolume: map[string]string{"service-names": "client"},
		start: func(s *site) {
			path := filepath.Join(s.directory, "haproxy.cfg")
			write(s.t, s.as, path, "global\n stats socket "+s.haproxyAPI()+" level admin\n"+
				"defaults\n timeout connect 1m\n timeout client 1m\n timeout server 1m\n"+
				page.code("haproxy", 0, s.tls.path, "bind :8443", "bind 127.0.0.1:"+s.port)+
				"backend app\n mode http\n http-request return status 200\n")
			command := page.code("sh", 0, s.tls.path, "/usr/local/etc/haproxy/haproxy.cfg", path)
			if reload != nil {
				_, command, _ = strings.Cut(command, " -- ") // without step-csi-reload
			}
			s.run(shell(command)...)
		},
		reload:       reload,
		use:          (*site).curl,
		refusal:      cutOff,
		followsRoots: reload == nil,
	}
}

// haproxyAPI is the socket of the runtime API.
func (s *site) haproxyAPI() string { return filepath.Join(s.directory, "api") }
