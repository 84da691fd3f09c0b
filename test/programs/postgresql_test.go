package programs

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flexstack/step-csi/test/loopback"
	"github.com/flexstack/step-csi/test/node"
)

// The server and its client read their keys through their pods' fsGroup.
func TestPostgreSQL(t *testing.T) {
	t.Parallel()
	postgreSQL(t, account{uid: 999, fsGroup: 999}, 0, account{uid: 10001, fsGroup: 10001}, 2).test(t)
}

// The server and its client own their files, in pods without an fsGroup.
func TestPostgreSQLWithoutFSGroup(t *testing.T) {
	t.Parallel()
	postgreSQL(t, account{uid: 999}, 1, account{uid: 10001}, 3).test(t)
}

// postgreSQL is a server and a client with the nth attributes of the page.
func postgreSQL(t *testing.T, as account, attributes int, clientAs account, clientAttributes int) server {
	page := documented(t, "PostgreSQL")
	programs := filepath.Dir(installed(t, "/usr/lib/postgresql/*/bin/postgres")) // not on Debian's PATH
	return server{
		section: "PostgreSQL",
		as:      as, volume: page.attributes(attributes),
		clientAs: clientAs, clientVolume: page.attributes(clientAttributes),
		start: func(s *site) {
			data, config := s.directory+"/data", s.directory+"/postgresql.conf"
			mustRun(t, s.as, s.directory, programs+"/initdb", "--username=postgres", "--no-sync", data)
			write(t, s.as, config, page.code("ini", 0, s.tls.path, "/etc/postgresql", s.directory))
			write(t, s.as, s.directory+"/pg_hba.conf", page.code("text", 0, s.tls.path))
			write(t, s.as, s.directory+"/pg_ident.conf", page.code("text", 1, s.tls.path))
			mustRun(t, s.as, s.directory, "sh", "-c", `echo "CREATE ROLE app LOGIN" | "$0" --single -F -D "$1" -c "config_file=$2" postgres`,
				programs+"/postgres", data, config)
			command := page.code("sh", 0, s.tls.path, "/etc/postgresql", s.directory, " postgres ", " "+programs+"/postgres ")
			s.run(shell(command, "-D", data, "-h", loopback.IP, "-p", s.port, "-k", s.directory, "-F")...)
			s.waitListening()
			node.Eventually(t, time.Minute, "PostgreSQL has started", func() bool {
				_, err := s.asClient("pg_isready", "-h", loopback.IP, "-p", s.port)
				return err == nil
			})
		},
		stop:     syscall.SIGINT, // as the official image does
		starttls: "postgres",
		use: func(s *site, client *volume) error {
			parameters := strings.Join(strings.Fields(s.of(client, page, "ini", 1)), " ")
			answer, err := s.asClient("psql", "--no-psqlrc", "-Atc", "select current_user, client_serial from pg_stat_ssl where pid = pg_backend_pid()",
				"host="+s.host+" port="+s.port+" dbname=postgres user=app "+parameters)
			if want := "app|" + client.leaf().SerialNumber.String(); err == nil && strings.TrimSpace(answer) != want {
				t.Errorf("PostgreSQL sees the client %q instead of %q", answer, want)
			}
			return err
		},
		refusal:      cutOff,
		denial:       "certificate authentication failed",
		followsRoots: true,
	}
}

// The error that the page quotes, and the reason for the attributes: without an fsGroup and
// without owner-uid, everybody in the pod may read the key.
func TestPostgreSQLRefusesAKeyForEverybody(t *testing.T) {
	t.Parallel()
	w := newPods(t)
	as := account{uid: 999}
	v := w.publish(as.pod("server-0", map[string]string{"service-names": "postgresql"}))
	directory := w.directory(as)
	programs := filepath.Dir(installed(t, "/usr/lib/postgresql/*/bin/postgres"))
	mustRun(t, as, directory, programs+"/initdb", "--no-sync", directory+"/data")
	_, err := run(t, as, directory, programs+"/postgres", "-D", directory+"/data", "-k", directory, "-h", "", "-c", "ssl=on",
		"-c", "ssl_cert_file="+v.file("tls.crt"), "-c", "ssl_key_file="+v.file("tls.key"))
	if err == nil || !strings.Contains(err.Error(), `private key file "`+v.file("tls.key")+`" has group or world access`) {
		t.Errorf("PostgreSQL accepts the key: %v", err)
	}
}
