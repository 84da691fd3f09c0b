package fleet

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the numbers and the charts to docs; for the whole fleet only")

const (
	docs       = "../../docs"
	tableBegin = "<!-- make fleet -->\n"
	tableEnd   = "<!-- end -->\n"
)

// document writes what came out, or makes sure that it was written for the
// scenarios that there are.
func document(t *testing.T, fleets []*fleet) {
	page := filepath.Join(docs, "fleet.md")
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, begins := strings.Cut(string(text), tableBegin)
	table, after, ends := strings.Cut(rest, tableEnd)
	if !begins || !ends {
		t.Fatalf("%s has no place for the table", page)
	}
	if *update && *nodes == allNodes {
		write(t, page, []byte(before+tableBegin+tableOf(fleets)+tableEnd+after))
		for i, s := range scenarios {
			write(t, s.chart(), s.svg(t, fleets[i]))
		}
		return
	}
	for i, s := range scenarios {
		_ = s.svg(t, fleets[i])
		if _, err := os.Stat(s.chart()); err != nil || !strings.Contains(before+after, "(fleet/"+s.name+".svg)") {
			t.Errorf("%s does not show the chart of %s: %v", page, s.name, err)
		}
		for _, p := range fleets[i].phases {
			if !strings.Contains(table, "| "+p.name+" |") {
				t.Errorf("%s does not know %s: %s; run make fleet", page, s.title, p.name)
			}
		}
	}
}

func (s scenario) chart() string { return filepath.Join(docs, "fleet", s.name+".svg") }

func (s scenario) svg(t *testing.T, f *fleet) []byte {
	var svg bytes.Buffer
	if err := s.draw(&svg, f, f.panels); err != nil {
		t.Error(err)
	}
	return svg.Bytes()
}

func write(t *testing.T, path string, data []byte) {
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Error(err)
	}
}

func tableOf(fleets []*fleet) string {
	var all strings.Builder
	all.WriteString("| what happens | when | asked for | most in 1 s | in 10 s, per second | signed, most in 1 s | " +
		"roots asked for, most in 1 s | one node, most in a minute | expired | took |\n|---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for i, s := range scenarios {
		title := s.title
		for _, p := range fleets[i].phases {
			all.WriteString(p.row(title))
			title = ""
		}
	}
	return all.String()
}
