package programs

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestNginx(t *testing.T) {
	t.Parallel()
	nginx(t, account{uid: 101, fsGroup: 101}, 0)
}

// TestNginxAsRoot has a master that runs as root and alone can read the key, and workers
// that run as another user.
func TestNginxAsRoot(t *testing.T) {
	t.Parallel()
	nginx(t, account{}, 1)
}

// nginx tests nginx as this user, with the page's nth attributes.
func nginx(t *testing.T, as account, n int) {
	t.Helper()
	page := documented(t, "nginx")
	server{
		section:      "nginx",
		as:           as,
		volume:       page.attributes(n),
		clientAs:     account{uid: 10001, fsGroup: 10001},
		clientVolume: map[string]string{"service-names": "client"},
		start: func(s *site) {
			var config strings.Builder
			config.WriteString("pid " + s.directory + "/pid;\nevents {}\nhttp {\naccess_log off;\n")
			for _, of := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
				config.WriteString(of + "_temp_path " + s.directory + "/" + of + ";\n")
			}
			config.WriteString(strings.Replace(page.code("nginx", 0, s.tls.path), "listen 8443", "listen 127.0.0.1:"+s.port, 1) + "}\n")
			path := filepath.Join(s.directory, "nginx.conf")
			write(t, s.as, path, config.String())
			s.run(shell(page.code("sh", 0, s.tls.path), "-e", "stderr", "-c", path)...)
		},
		use:          (*site).curl,
		refusal:      "returned error: 400",
		followsRoots: true,
	}.test(t)
}

// curl gets the server's page over a new connection, as the client's user.
func (s *site) curl(client *volume) error {
	_, err := s.asClient("curl", "--silent", "--show-error", "--fail", "--max-time", "60",
		"--cacert", s.client.file("ca.crt"), "--cert", client.file("tls.crt"), "--key", client.file("tls.key"),
		"https://"+s.host+":"+s.port+"/")
	return err
}
