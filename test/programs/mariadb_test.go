package programs

import (
	"os/user"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/flexstack/step-csi/test/loopback"
	"github.com/flexstack/step-csi/test/node"
)

func TestMariaDB(t *testing.T) {
	t.Parallel()
	page := documented(t, "MySQL and MariaDB")
	server{
		section:      "MySQL and MariaDB",
		as:           mysql(t),
		volume:       page.attributes(0),
		clientAs:     account{uid: 10001, fsGroup: 10001},
		clientVolume: page.attributes(1),
		start: func(s *site) {
			data, config, socket := s.directory+"/data", s.directory+"/my.cnf", s.directory+"/mysqld.sock"
			write(t, s.as, config, page.code("ini", 0, s.tls.path))
			small := []string{"--innodb-log-file-size=4M", "--innodb-buffer-pool-size=16M", "--innodb-flush-log-at-trx-commit=0"}
			mustRun(t, s.as, s.directory, append([]string{"mariadb-install-db", "--no-defaults", "--datadir=" + data, "--skip-test-db",
				"--auth-root-authentication-method=normal"}, small...)...)
			s.run(append([]string{"mariadbd", "--defaults-file=" + config, "--datadir=" + data, "--bind-address=" + loopback.IP,
				"--port=" + s.port, "--socket=" + socket, "--pid-file=" + s.directory + "/pid"}, small...)...)
			s.waitListening()
			mustRun(t, s.as, s.directory, "mariadb", "--no-defaults", "--socket="+socket, "--user=root", "--execute="+page.code("sql", 0, ""))
			start(t, s.as, s.directory, 0, shell(page.code("sh", 0, s.tls.path, "/run/mysqld", s.directory))...)
		},
		starttls: "mysql",
		use: func(s *site, client *volume) error {
			file := filepath.Join(s.clientDirectory, "my.cnf")
			write(t, s.clientAs, file, s.of(client, page, "ini", 1))
			_, err := s.asClient("mariadb", "--defaults-file="+file, "--host="+s.host, "--port="+s.port, "--user=app", "--execute=select current_user()")
			return err
		},
		refusal:      cutOff,
		denial:       "Access denied",
		followsRoots: true,
	}.test(t)
}

// mysql is the user of that name, whom MariaDB's plugin unix_socket looks for.
func mysql(t *testing.T) account {
	t.Helper()
	found, err := user.Lookup("mysql")
	if err != nil {
		appendLine(t, "/etc/passwd", "mysql:x:989:989::/nonexistent:/usr/sbin/nologin")
		return account{uid: 989, fsGroup: 999}
	}
	uid, err := strconv.ParseUint(found.Uid, 10, 32)
	node.Must(t, err)
	return account{uid: uint32(uid), fsGroup: 999}
}
