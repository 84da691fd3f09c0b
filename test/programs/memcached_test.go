package programs

import (
	"strings"
	"testing"

	"github.com/flexstack/step-csi/test/loopback"
	"github.com/flexstack/step-csi/test/node"
)

func TestMemcached(t *testing.T) {
	t.Parallel()
	page := documented(t, "memcached")
	server{
		section:      "memcached",
		as:           account{uid: 11211, fsGroup: 11211},
		volume:       page.attributes(0),
		clientVolume: map[string]string{"service-names": "client"},
		start: func(s *site) {
			s.run(append(strings.Fields(page.code("sh", 0, s.tls.path)), "-l", loopback.IP, "-p", s.port, "-U", "0")...)
		},
		reload:       func(s *site) { node.Must(s.t, s.exchange(s.client, "refresh_certs\r\n", "OK\r\n")) },
		use:          func(s *site, client *volume) error { return s.exchange(client, "version\r\n", "VERSION ") },
		refusal:      refusedByAlert,
		followsRoots: true,
	}.test(t)
}
