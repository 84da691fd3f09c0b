package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// operations is the directory with a page for each task of an administrator. The scenarios
// run the commands of these pages as they are written: see page.
const operations = "docs/operations"

// notRun are the blocks of the pages that no scenario runs. contains is a text that only
// this block of the page has.
var notRun = []struct{ document, contains, reason string }{
	{operations + "/uninstall.md", "kubectl debug node/<node>", "It opens an interactive shell on a node. The scenario runs what is typed there."},
	{operations + "/disaster.md", "kubectl drain", "The cluster of the tests has one node, which runs everything."},
}

// codeBlock is a fenced block of a Markdown document.
type codeBlock struct{ language, text string }

// runs tells whether a scenario has to use the block. Other blocks are what commands print.
func (b codeBlock) runs() bool { return b.language == "sh" || b.language == "yaml" }

// fence also matches blocks in lists, which are indented.
var fence = regexp.MustCompile("(?ms)^ *```([a-z]*)\n(.*?)^ *```$")

// codeBlocks returns the blocks of a document, in their order.
func codeBlocks(document string) ([]codeBlock, error) {
	text, err := os.ReadFile(document)
	if err != nil {
		return nil, err
	}
	var all []codeBlock
	for _, found := range fence.FindAllStringSubmatch(string(text), -1) {
		all = append(all, codeBlock{found[1], found[2]})
	}
	return all, nil
}

// isRun tells whether a scenario runs the block of the document.
func isRun(document string, b codeBlock) bool {
	for _, exception := range notRun {
		if exception.document == document && strings.Contains(b.text, exception.contains) {
			return false
		}
	}
	return true
}

// Every page is used by a scenario, which fails if it leaves out a block: see page. Here,
// without a cluster, every block is a script that the shell can read, and every exception
// is of a block that exists.
func TestEveryPageIsRun(t *testing.T) {
	if _, err := os.Stat(operations); err != nil { // go test runs in the package's directory
		t.Chdir("../..")
	}
	documents, err := filepath.Glob(operations + "/*.md")
	if err != nil || len(documents) < 11 {
		t.Fatalf("found only the pages %q, %v", documents, err)
	}
	scenarios := ""
	sources, err := filepath.Glob("test/e2e/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, source := range sources {
		text, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		scenarios += string(text)
	}
	exceptions := 0
	for _, document := range documents {
		blocks, err := codeBlocks(document)
		if err != nil {
			t.Fatal(err)
		}
		run := 0
		for _, b := range blocks {
			switch {
			case !b.runs() && b.language != "text":
				t.Errorf("%s: this block is of the language %q, want sh, yaml, or text for what a command prints:\n%s", document, b.language, b.text)
			case !b.runs():
			case isRun(document, b):
				run++
			default:
				exceptions++
			}
			if b.language != "sh" {
				continue
			}
			check := exec.Command("sh", "-n")
			check.Stdin = strings.NewReader(strings.ReplaceAll(b.text, "<node>", "node"))
			if out, err := check.CombinedOutput(); err != nil {
				t.Errorf("%s: the shell cannot read this block: %s\n%s", document, out, b.text)
			}
			for _, program := range []string{"jq", "yq", "python", "perl"} {
				if regexp.MustCompile(`(^|[\s|(])` + program + `\b`).MatchString(b.text) {
					t.Errorf("%s: this block needs %s, which not every administrator has:\n%s", document, program, b.text)
				}
			}
		}
		if opened := strings.Contains(scenarios, fmt.Sprintf("openPage(t, %q)", filepath.Base(document))); run > 0 && !opened {
			t.Errorf("no scenario opens %s, which has %d blocks to run", document, run)
		} else if run == 0 && filepath.Base(document) != "README.md" {
			t.Errorf("%s has no block that a scenario runs", document)
		}
	}
	if exceptions != len(notRun) {
		t.Errorf("%d blocks are not run, but notRun has %d exceptions: each must match one block", exceptions, len(notRun))
	}
}
