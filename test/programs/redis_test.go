package programs

import (
	"testing"

	"github.com/flexstack/step-csi/test/node"
)

func TestRedis(t *testing.T) {
	t.Parallel()
	page := documented(t, "Redis")
	server{
		section:      "Redis",
		as:           account{uid: 999, fsGroup: 999},
		volume:       page.attributes(0),
		clientAs:     account{uid: 10001, fsGroup: 10001},
		clientVolume: map[string]string{"service-names": "client"},
		start: func(s *site) {
			config := s.directory + "/redis.conf"
			write(t, s.as, config, page.code("ini", 0, s.tls.path)+"tls-port "+s.port+"\nsave \"\"\n")
			s.run("redis-server", config)
		},
		reload: func(s *site) {
			_, err := s.redis(s.client, "config", "set", "tls-cert-file", s.tls.file("tls.crt"))
			node.Must(t, err)
		},
		use: func(s *site, client *volume) error {
			_, err := s.redis(client, "set", "key", "value")
			return err
		},
		refusal: cutOff,
	}.test(t)
}

// redis runs a command of Redis as the client's user.
func (s *site) redis(client *volume, command ...string) (string, error) {
	return s.asClient(append([]string{"redis-cli", "-e", "-h", s.host, "-p", s.port, "--tls",
		"--cacert", s.client.file("ca.crt"), "--cert", client.file("tls.crt"), "--key", client.file("tls.key")}, command...)...)
}
