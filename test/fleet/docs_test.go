package fleet

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

var update = flag.Bool("update", false, "write the numbers and the charts to docs; for the whole fleet only")

const (
	docs  = "../../docs"
	begin = "<!-- make fleet: "
	end   = "<!-- end -->\n"
)

// page serializes writes to docs/fleet.md.
var page sync.Mutex

// document writes the results to the docs, or checks that the docs have a chart and
// a table with these phases.
func (s scenario) document(t *testing.T, f *fleet) {
	page.Lock()
	defer page.Unlock()
	path := filepath.Join(docs, "fleet.md")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, begins := strings.Cut(string(text), begin+s.name+" -->\n")
	known, after, ends := strings.Cut(rest, end)
	if !begins || !ends {
		t.Fatalf("%s has no section %s", path, s.name)
	}
	chart := filepath.Join(docs, "fleet", s.name+".svg")
	if *update && *nodes == allNodes {
		write(t, path, before+begin+s.name+" -->\n"+s.section(f)+end+after)
		write(t, chart, s.svg(t, f))
		return
	}
	_ = s.svg(t, f)
	if _, err := os.Stat(chart); err != nil || !strings.Contains(known, "(fleet/"+s.name+".svg)") {
		t.Errorf("%s lacks the chart: %v; run make fleet", path, err)
	}
	for _, p := range f.phases {
		if !strings.Contains(known, "| "+p.name+" |") {
			t.Errorf("%s lacks the phase %q; run make fleet", path, p.name)
		}
	}
}

// section returns the chart and the table of a scenario, in Markdown.
func (s scenario) section(f *fleet) string {
	var all strings.Builder
	all.WriteString("![" + s.title + "](fleet/" + s.name + ".svg)\n\n" +
		"| | certificates requested | most in 1 s | in 10 s, per second | signed, most in 1 s | token reviews, most in 1 s | " +
		"roots requested, most in 1 s | by one node, most in a minute | expired | took |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, p := range f.phases {
		all.WriteString(p.row() + "\n")
	}
	return all.String()
}

func (s scenario) svg(t *testing.T, f *fleet) string {
	var svg bytes.Buffer
	if err := s.draw(&svg, f, f.panels); err != nil {
		t.Error(err)
	}
	return svg.String()
}

func write(t *testing.T, path, text string) {
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Error(err)
	}
}
