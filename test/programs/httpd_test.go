package programs

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/flexstack/step-csi/test/node"
)

func TestHTTPD(t *testing.T) {
	t.Parallel()
	page := documented(t, "Apache httpd")
	server{
		section:      "Apache httpd",
		volume:       page.attributes(0),
		clientAs:     account{uid: 10001, fsGroup: 10001},
		clientVolume: map[string]string{"service-names": "client"},
		start: func(s *site) {
			var config strings.Builder
			for _, module := range []string{"mpm_event", "authz_core", "alias", "ssl"} {
				config.WriteString("LoadModule " + module + "_module /usr/lib/apache2/modules/mod_" + module + ".so\n")
			}
			config.WriteString("User www-data\nGroup www-data\nServerName " + s.host + "\nErrorLog error.log\nPidFile pid\n" +
				"DefaultRuntimeDir " + s.directory + "\nStartServers 1\nRedirect / /elsewhere\n" +
				strings.Replace(page.code("apacheconf", 0, s.tls.path), "Listen 8443", "Listen 127.0.0.1:"+s.port, 1))
			path := filepath.Join(s.directory, "httpd.conf")
			write(t, s.as, path, config.String())
			s.run("apache2", "-D", "FOREGROUND", "-d", s.directory, "-f", path)
		},
		reload:       func(s *site) { node.Must(s.t, s.process.Process.Signal(syscall.SIGUSR1)) },
		use:          (*site).curl,
		refusal:      cutOff,
		followsRoots: true,
	}.test(t)
}
