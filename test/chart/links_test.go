package chart

import (
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"
)

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`^#{1,6} +(.*)$`)
)

// Every relative link in the documentation points to a file of the repository, and
// every anchor to a heading of that file.
func TestLinks(t *testing.T) {
	checked := 0
	for _, page := range pages(t) {
		for _, line := range prose(read(t, page)) {
			for _, found := range link.FindAllStringSubmatch(line, -1) {
				target, err := url.Parse(found[1])
				if err != nil {
					t.Errorf("%s: %v", page, err)
					continue
				}
				if target.IsAbs() {
					continue
				}
				checked++
				if problem := broken(t, page, target); problem != "" {
					t.Errorf("%s: the link %s is broken: %s", page, found[1], problem)
				}
			}
		}
	}
	if checked < 100 {
		t.Errorf("found only %d relative links", checked)
	}
}

// broken returns why a relative link of the page is broken, or an empty string.
func broken(t *testing.T, page string, target *url.URL) string {
	file := page
	if target.Path != "" {
		file = filepath.Join(filepath.Dir(page), filepath.FromSlash(target.Path))
	}
	info, err := os.Stat(file)
	if err != nil {
		return err.Error()
	}
	if target.Fragment == "" {
		return ""
	}
	if info.IsDir() { // GitHub shows its README
		file = filepath.Join(file, "README.md")
	}
	if !anchors(read(t, file))[target.Fragment] {
		return "no such heading in " + file
	}
	return ""
}

// pages are the Markdown files that users and contributors read.
func pages(t *testing.T) []string {
	t.Helper()
	all, err := filepath.Glob(root + "/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, directory := range []string{root + "/docs", root + "/deploy"} {
		err := filepath.WalkDir(directory, func(path string, _ fs.DirEntry, err error) error {
			if strings.HasSuffix(path, ".md") {
				all = append(all, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// prose returns the lines outside of code blocks.
func prose(text string) (lines []string) {
	code := false
	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			code = !code
		} else if !code {
			lines = append(lines, strings.TrimSuffix(line, "\n"))
		}
	}
	return lines
}

// anchors returns the anchors that GitHub gives the headings of a page.
func anchors(text string) map[string]bool {
	all := map[string]bool{}
	for _, line := range prose(text) {
		found := heading.FindStringSubmatch(line)
		if found == nil {
			continue
		}
		all[strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-', r == '_', unicode.IsLetter(r), unicode.IsDigit(r):
				return unicode.ToLower(r)
			}
			return -1
		}, found[1])] = true
	}
	return all
}
