package main

import (
	"compress/gzip"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A program, and two databases: in one, a function that the program calls is vulnerable.
const (
	program = "package main\n\nimport \"strings\"\n\nfunc main() { println(strings.ToUpper(\"a\")) }\n"
	entry   = `{"schema_version": "1.3.1", "id": "GO-2026-9999", "modified": "2026-01-01T00:00:00Z", "published": "2026-01-01T00:00:00Z", "details": "made up",
"affected": [{"package": {"name": "stdlib", "ecosystem": "Go"}, "ranges": [{"type": "SEMVER", "events": [{"introduced": "0"}]}],
"ecosystem_specific": {"imports": [{"path": "strings", "symbols": ["ToUpper"]}]}}],
"database_specific": {"url": "https://vuln.invalid/GO-2026-9999"}}`
)

func write(t *testing.T, files map[string]string) (directory string) {
	t.Helper()
	directory = t.TempDir()
	for name, text := range files {
		path := filepath.Join(directory, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return directory
}

func clean(t *testing.T) string {
	return write(t, map[string]string{"index/db.json": `{"modified": "2026-01-01T00:00:00Z"}`, "index/modules.json": `[]`, "index/vulns.json": `[]`})
}

func vulnerable(t *testing.T) string {
	return write(t, map[string]string{
		"index/db.json":        `{"modified": "2026-01-01T00:00:00Z"}`,
		"index/modules.json":   `[{"path": "stdlib", "vulns": [{"id": "GO-2026-9999", "modified": "2026-01-01T00:00:00Z"}]}]`,
		"index/vulns.json":     `[{"id": "GO-2026-9999", "modified": "2026-01-01T00:00:00Z"}]`,
		"ID/GO-2026-9999.json": entry,
	})
}

// served serves a database as vuln.go.dev does.
func served(t *testing.T, directory string) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, err := os.ReadFile(filepath.Join(directory, strings.TrimSuffix(r.URL.Path, ".gz")))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		compressed := gzip.NewWriter(w)
		compressed.Write(data)
		compressed.Close()
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func answering(t *testing.T, status int, body string) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		w.Write([]byte(body))
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// silent accepts connections and never answers.
func silent(t *testing.T) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return "http://" + listener.Addr().String()
}

func refusing(t *testing.T) string {
	s := httptest.NewServer(nil)
	s.Close()
	return s.URL
}

func TestRun(t *testing.T) {
	module := write(t, map[string]string{"go.mod": "module example.com/made-up\n\ngo 1.26\n", "main.go": program})
	const unchecked = "NOT CHECKED for known vulnerabilities"
	for name, test := range map[string]struct {
		database string
		failure  bool
		says     []string
	}{
		"nothing listens":         {refusing(t), false, []string{unchecked, "refused"}},
		"no answer":               {silent(t), false, []string{unchecked, "exceeded"}},
		"a proxy denies":          {answering(t, http.StatusForbidden, "no"), false, []string{unchecked, "403"}},
		"a proxy's page":          {answering(t, http.StatusOK, "<html>log in</html>"), false, []string{unchecked, "proxy"}},
		"a clean directory":       {"file://" + clean(t), false, []string{"No vulnerabilities found"}},
		"a clean server":          {served(t, clean(t)), false, []string{"No vulnerabilities found"}},
		"vulnerable, a directory": {"file://" + vulnerable(t), true, []string{"GO-2026-9999", "main calls strings.ToUpper"}},
		"vulnerable, a server":    {served(t, vulnerable(t)), true, []string{"GO-2026-9999", "main calls strings.ToUpper"}},
		"no such directory":       {"file://" + t.TempDir() + "/missing", true, []string{"missing"}},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			status := check{database: test.database, reachable: 5 * time.Second, directory: module, packages: []string{"./..."}}.run(&out)
			if (status != 0) != test.failure {
				t.Errorf("exit status %d:\n%s", status, &out)
			}
			for _, want := range test.says {
				if !strings.Contains(out.String(), want) {
					t.Errorf("no %q in:\n%s", want, &out)
				}
			}
			if strings.Contains(out.String(), unchecked) != (test.says[0] == unchecked) {
				t.Errorf("unexpected:\n%s", &out)
			}
		})
	}
}
