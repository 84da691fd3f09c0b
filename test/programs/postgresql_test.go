package programs

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// The server and its client read their keys through their pods' fsGroup.
func TestPostgreSQL(t *testing.T) {
	t.Parallel()
	postgresql(t, account{uid: 999, fsGroup: 999}, 0, account{uid: 10001, fsGroup: 10001}, 2)
}

// postgresql tests a server and a client with the nth attributes of the page.
func postgresql(t *testing.T, as account, attributes int, clientAs account, clientAttributes int) {
	page := documented(t, "PostgreSQL")
	server{
		section: "PostgreSQL",
		as:      as, volume: page.attributes(attributes),
		clientAs: clientAs, clientVolume: page.attributes(clientAttributes),
		start: func(s *site) {
			programs := filepath.Dir(installed(t, "/usr/lib/postgresql/*/bin/postgres"))
			data := filepath.Join(s.directory, "data")
			mustRun(t, s.as, s.directory, programs+"/initdb", "--username=postgres", "--no-sync", data)
			config := filepath.Join(s.directory, "postgresql.conf")
			write(t, s.as, config, strings.ReplaceAll(page.code("ini", 0, s.tls.path), "/etc/postgresql", s.directory))
			write(t, s.as, filepath.Join(s.directory, "pg_hba.conf"), page.code("text", 0, s.tls.path))
			write(t, s.as, filepath.Join(s.directory, "pg_ident.conf"), page.code("text", 1, s.tls.path))
			server := []string{programs + "/postgres", "-D", data, "-c", "config_file=" + config, "-h", "127.0.0.1", "-p", s.port, "-k", s.directory, "-F"}
			mustRun(t, s.as, s.directory, "sh", "-c", `echo "CREATE ROLE app LOGIN" | "$0" --single -F -D "$1" -c "config_file=$2" postgres`, server[0], data, config)
			s.run(server...)
		},
		stop:     syscall.SIGINT, // as the official image does
		starttls: "postgres",
		reload:   hangUp,
		use: func(s *site, client *volume) error {
			for {
				answer, err := s.asClient("psql", "--no-psqlrc", "-Atc", "select current_user, client_serial from pg_stat_ssl where pid = pg_backend_pid()",
					"host="+s.host+" port="+s.port+" dbname=postgres user=app "+s.parameters(page, client))
				if err != nil && strings.Contains(err.Error(), "the database system is starting up") {
					continue
				}
				if want := "app|" + client.leaf().SerialNumber.String(); err == nil && strings.TrimSpace(answer) != want {
					t.Errorf("PostgreSQL sees the client %q instead of %q", answer, want)
				}
				return err
			}
		},
		refusal: cutOff,
		denial:  "certificate authentication failed",
	}.test(t)
}

// parameters are the connection parameters of the page with a client's files. All clients
// trust the server's CA.
func (s *site) parameters(page section, client *volume) string {
	own := page.code("ini", 1, client.path)
	return strings.Join(strings.Fields(strings.ReplaceAll(own, client.file("ca.crt"), s.client.file("ca.crt"))), " ")
}
