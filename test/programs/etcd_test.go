package programs

import (
	"net"
	"path/filepath"
	"testing"

	"github.com/flexstack/step-csi/test/loopback"
	"github.com/flexstack/step-csi/test/node"
)

// TestEtcd has no new root: etcd reads its roots once.
func TestEtcd(t *testing.T) {
	t.Parallel()
	page := documented(t, "etcd")
	server{
		section:      "etcd",
		as:           account{uid: 1001, fsGroup: 1001},
		volume:       page.attributes(0),
		clientVolume: map[string]string{"service-names": "client"},
		start: func(s *site) {
			peers, err := loopback.Address(loopback.IP)
			node.Must(t, err)
			clients := "https://" + net.JoinHostPort(loopback.IP, s.port)
			s.run(shell(page.code("sh", 0, s.tls.path), "--data-dir="+filepath.Join(s.directory, "data"), "--unsafe-no-fsync",
				"--listen-client-urls="+clients, "--advertise-client-urls="+clients,
				"--listen-peer-urls=http://"+peers, "--initial-advertise-peer-urls=http://"+peers, "--initial-cluster=default=http://"+peers)...)
		},
		use: func(s *site, client *volume) error {
			return s.exchange(client, "GET /version HTTP/1.0\r\n\r\n", "HTTP/1.0 200 ")
		},
		refusal: refusedByAlert,
	}.test(t)
}
