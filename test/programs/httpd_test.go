package programs

import (
	"path/filepath"
	"strings"
	"testing"
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
			// Debian's name of httpd is apache2.
			s.run(shell(page.code("sh", 0, s.tls.path, " httpd ", " apache2 ", "/etc/httpd/httpd.conf", path), "-d", s.directory)...)
		},
		use:          (*site).curl,
		refusal:      cutOff,
		followsRoots: true,
	}.test(t)
}
