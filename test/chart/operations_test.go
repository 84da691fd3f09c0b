package chart

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// The values of every page of docs/operations fit into the chart, beside those of the
// guide's layout.
func TestOperationsValues(t *testing.T) {
	pages, err := filepath.Glob(root + "/docs/operations/*.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks, checked := regexp.MustCompile("(?s)```yaml\n(.*?)```"), 0
	for _, page := range pages {
		for _, found := range blocks.FindAllStringSubmatch(read(t, page), -1) {
			checked++
			file := filepath.Join(t.TempDir(), "values.yaml")
			if err := os.WriteFile(file, []byte(found[1]), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := template("--values", root+"/deploy/examples/values/guide.yaml", "--values", file); err != nil {
				t.Errorf("%s: with the values\n%s\n%v", page, found[1], err)
			}
		}
	}
	if checked < 4 {
		t.Errorf("found only %d blocks of values", checked)
	}
}
