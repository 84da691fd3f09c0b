package programs

import (
	"path/filepath"
	"testing"
)

func TestPrometheus(t *testing.T) {
	t.Parallel()
	page := documented(t, "Prometheus and its exporters")
	server{
		section:      "Prometheus and its exporters",
		as:           account{uid: 65534, fsGroup: 65534},
		volume:       page.attributes(0),
		clientVolume: map[string]string{"service-names": "client"},
		start: func(s *site) {
			config, web := filepath.Join(s.directory, "prometheus.yml"), filepath.Join(s.directory, "web.yml")
			write(t, s.as, config, "{}\n")
			write(t, s.as, web, page.code("yaml", 1, s.tls.path))
			s.run("prometheus", "--config.file="+config, "--web.config.file="+web, "--web.listen-address=127.0.0.1:"+s.port,
				"--storage.tsdb.path="+filepath.Join(s.directory, "data"))
		},
		use: func(s *site, client *volume) error {
			return s.exchange(client, "GET /-/healthy HTTP/1.0\r\n\r\n", "HTTP/1.0 200 ")
		},
		refusal:      refusedByAlert,
		followsRoots: true,
	}.test(t)
}
