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
	postgresql(t, account{uid: 999, fsGroup: 999}, 0, account{uid: 10001, fsGroup: 10001}, 2)
}

// The server and its client own their files, in pods without an fsGroup.
func TestPostgreSQLWithoutFSGroup(t *testing.T) {
	t.Parallel()
	postgresql(t, account{uid: 999}, 1, account{uid: 10001}, 3)
}

// postgres is the path of one of PostgreSQL's programs, which are not on Debian's PATH.
func postgres(t *testing.T, program string) string {
	return installed(t, "/usr/lib/postgresql/*/bin/"+program)
}

// postgresql tests a server and a client with the nth attributes of the page.
func postgresql(t *testing.T, as account, attributes int, clientAs account, clientAttributes int) {
	page := documented(t, "PostgreSQL")
	server{
		section: "PostgreSQL",
		as:      as, volume: page.attributes(attributes),
		clientAs: clientAs, clientVolume: page.attributes(clientAttributes),
		start: func(s *site) {
			data := filepath.Join(s.directory, "data")
			mustRun(t, s.as, s.directory, postgres(t, "initdb"), "--username=postgres", "--no-sync", data)
			here := func(text string) string { return strings.ReplaceAll(text, "/etc/postgresql", s.directory) }
			write(t, s.as, s.directory+"/postgresql.conf", here(page.code("ini", 0, s.tls.path)))
			write(t, s.as, s.directory+"/pg_hba.conf", page.code("text", 0, s.tls.path))
			write(t, s.as, s.directory+"/pg_ident.conf", page.code("text", 1, s.tls.path))
			mustRun(t, s.as, s.directory, "sh", "-c", `echo "CREATE ROLE app LOGIN" | "$0" --single -F -D "$1" -c "config_file=$2" postgres`,
				postgres(t, "postgres"), data, s.directory+"/postgresql.conf")
			command := strings.ReplaceAll(here(page.code("sh", 0, s.tls.path)), " postgres ", " "+postgres(t, "postgres")+" ")
			s.run(s.documented(command, "-D", data, "-h", loopback.IP, "-p", s.port, "-k", s.directory, "-F")...)
			s.waitListening()
			node.Eventually(t, time.Minute, "PostgreSQL has started", func() bool {
				_, err := s.asClient("pg_isready", "-h", loopback.IP, "-p", s.port)
				return err == nil
			})
		},
		stop:     syscall.SIGINT, // as the official image does
		starttls: "postgres",
		use: func(s *site, client *volume) error {
			answer, err := s.asClient("psql", "--no-psqlrc", "-Atc", "select current_user, client_serial from pg_stat_ssl where pid = pg_backend_pid()",
				"host="+s.host+" port="+s.port+" dbname=postgres user=app "+s.parameters(page, client))
			if want := "app|" + client.leaf().SerialNumber.String(); err == nil && strings.TrimSpace(answer) != want {
				t.Errorf("PostgreSQL sees the client %q instead of %q", answer, want)
			}
			return err
		},
		refusal:      cutOff,
		followsRoots: true,
		denial:       "certificate authentication failed",
	}.test(t)
}

// parameters are the connection parameters of the page with a client's files. All clients
// trust the server's CA.
func (s *site) parameters(page section, client *volume) string {
	own := page.code("ini", 1, client.path)
	return strings.Join(strings.Fields(strings.ReplaceAll(own, client.file("ca.crt"), s.client.file("ca.crt"))), " ")
}
