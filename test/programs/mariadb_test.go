package programs

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestMariaDB(t *testing.T) {
	t.Parallel()
	page := documented(t, "MySQL and MariaDB")
	server{
		section:      "MySQL and MariaDB",
		as:           account{uid: 999, fsGroup: 999},
		volume:       page.attributes(0),
		clientAs:     account{uid: 10001, fsGroup: 10001},
		clientVolume: map[string]string{"service-names": "client"},
		start: func(s *site) {
			data, config, socket := filepath.Join(s.directory, "data"), filepath.Join(s.directory, "my.cnf"), filepath.Join(s.directory, "s")
			write(t, s.as, config, page.code("ini", 0, s.tls.path))
			mustRun(t, s.as, s.directory, "mariadb-install-db", "--no-defaults", "--datadir="+data, "--skip-test-db", "--auth-root-authentication-method=normal", "--innodb-log-file-size=4M", "--innodb-flush-log-at-trx-commit=0")
			s.run("mariadbd", "--defaults-file="+config, "--datadir="+data, "--bind-address=127.0.0.1", "--port="+s.port, "--socket="+socket, "--pid-file="+s.directory+"/pid", "--innodb-log-file-size=4M", "--innodb-buffer-pool-size=16M")
			s.waitListening()
			s.sql(page.code("sql", 0, ""))
		},
		starttls: "mysql",
		reload:   func(s *site) { s.sql(page.code("sql", 1, "")) },
		use: func(s *site, client *volume) error {
			own := page.code("ini", 1, client.path)
			file := filepath.Join(s.clientDirectory, "my.cnf")
			write(t, s.clientAs, file, strings.ReplaceAll(own, client.file("ca.crt"), s.client.file("ca.crt")))
			_, err := s.asClient("mariadb", "--defaults-file="+file, "--host="+s.host, "--port="+s.port, "--user=app", "--execute=select current_user()")
			return err
		},
		refusal: cutOff,
		denial:  "Access denied",
	}.test(t)
}

// sql runs statements of MariaDB as its administrator.
func (s *site) sql(statements string) {
	s.t.Helper()
	mustRun(s.t, s.as, s.directory, "mariadb", "--no-defaults", "--socket="+filepath.Join(s.directory, "s"), "--user=root", "--execute="+statements)
}
