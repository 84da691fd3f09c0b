package programs

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/flexstack/step-csi/test/node"
)

// section is that of a program in docs/programs.md.
type section struct {
	t      testing.TB
	title  string
	blocks []block
}

// block is one of its blocks of code.
type block struct{ language, text string }

// documented returns the section with that heading.
func documented(t testing.TB, title string) section {
	t.Helper()
	page, err := os.ReadFile("../../docs/programs.md")
	node.Must(t, err)
	s := section{t: t, title: title}
	inside, open := false, false
	for line := range strings.Lines(string(page)) {
		text := strings.TrimSuffix(line, "\n")
		language, fence := strings.CutPrefix(text, "```")
		switch {
		case !open && strings.HasPrefix(text, "## "):
			inside = text == "## "+title
		case !inside:
		case fence && !open:
			s.blocks = append(s.blocks, block{language: language})
			open = true
		case fence:
			open = false
		case open:
			s.blocks[len(s.blocks)-1].text += line
		}
	}
	if len(s.blocks) == 0 {
		t.Fatalf("docs/programs.md has no section %q with blocks of code", title)
	}
	return s
}

// attributes returns the volume attributes: those of the nth block that has them, from 0.
func (s section) attributes(n int) map[string]string {
	s.t.Helper()
	for _, b := range s.blocks {
		var volume struct {
			VolumeAttributes map[string]string `json:"volumeAttributes"`
		}
		if b.language != "yaml" || yaml.Unmarshal([]byte(b.text), &volume) != nil || len(volume.VolumeAttributes) == 0 {
			continue
		}
		if n--; n < 0 {
			return volume.VolumeAttributes
		}
	}
	s.t.Fatalf("docs/programs.md: %s has too few blocks with volumeAttributes", s.title)
	return nil
}

// code returns the nth block in that language, from 0. The page mounts all volumes at
// /etc/tls, and the test at that path. oldnew are other texts to replace, in pairs.
func (s section) code(language string, n int, path string, oldnew ...string) string {
	s.t.Helper()
	for _, b := range s.blocks {
		if b.language != language {
			continue
		}
		if n--; n < 0 {
			return strings.NewReplacer(append(oldnew, "/etc/tls", path)...).Replace(b.text)
		}
	}
	s.t.Fatalf("docs/programs.md: %s has too few blocks of %s", s.title, language)
	return ""
}

var (
	row  = regexp.MustCompile(`^\| \[([^]]+)\]\(#[^)]+\) \|.*\| ([^|]+) \|$`)
	test = regexp.MustCompile(`\bTest[A-Z]\w*`)
)

// Each program has a row and a section. The row names the tests of the program, or the section
// says that there are none.
func TestPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/programs.md")
	node.Must(t, err)
	var rows, sections []string
	testedBy, text := map[string]string{}, map[string]string{}
	for line := range strings.Lines(string(page)) {
		line = strings.TrimSuffix(line, "\n")
		if found := row.FindStringSubmatch(line); found != nil {
			rows = append(rows, found[1])
			testedBy[found[1]] = found[2]
		} else if title, ok := strings.CutPrefix(line, "## "); ok {
			sections = append(sections, title)
		} else if len(sections) > 0 {
			text[sections[len(sections)-1]] += line + "\n"
		}
	}
	if len(rows) == 0 || !slices.Equal(rows, sections) {
		t.Errorf("the table has the programs %q, and the sections are %q", rows, sections)
	}
	var code strings.Builder
	files, err := filepath.Glob("*_test.go")
	node.Must(t, err)
	for _, file := range files {
		content, err := os.ReadFile(file)
		node.Must(t, err)
		code.Write(content)
	}
	for _, program := range sections {
		tests := test.FindAllString(testedBy[program], -1)
		if none := strings.Contains(text[program], "Not tested here"); none != (testedBy[program] == "no") || none == (len(tests) > 0) {
			t.Errorf("%s: the table says tested by %q, and the section says not tested: %v", program, testedBy[program], none)
		}
		for _, name := range append(tests, test.FindAllString(text[program], -1)...) {
			if !strings.Contains(code.String(), "\nfunc "+name+"(t *testing.T) {\n") {
				t.Errorf("%s: there is no %s", program, name)
			}
		}
	}
}
