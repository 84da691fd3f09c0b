package chart

import (
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	// namedTest is the name of a test in the documentation: of a function, or `e2e/…` for
	// a scenario of test/e2e.
	namedTest = regexp.MustCompile("\\b(?:Test|Fuzz)[A-Z][A-Za-z0-9]*\\b|`e2e/[a-z][a-z0-9-]*`")
	testFunc  = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)[A-Z]\w*)\(\w+ \*testing\.[TF]\)`)
	scenario  = regexp.MustCompile(`(?m)^\s*\{?"([a-z][a-z0-9-]*)"[:,] +[a-zA-Z]+\}?,$`)
)

// Every test that the documentation names exists: a promise cannot lose its test.
func TestNamedTestsExist(t *testing.T) {
	exists, named := testsOfTheRepository(t), 0
	for _, page := range pages(t) {
		for _, test := range namedTest.FindAllString(read(t, page), -1) {
			named++
			if !exists[strings.Trim(test, "`")] {
				t.Errorf("%s names %s, which does not exist", page, test)
			}
		}
	}
	if named < 50 {
		t.Errorf("the documentation names only %d tests", named)
	}
}

// Every row of the threat model names a test.
func TestThreatsHaveTests(t *testing.T) {
	_, table, _ := strings.Cut(read(t, root+"/docs/security.md"), "\n|---|---|---|---|---|\n")
	table, _, _ = strings.Cut(table, "\n\n")
	rows := strings.Split(table, "\n")
	if len(rows) < 15 {
		t.Errorf("the threat model has %d rows", len(rows))
	}
	for _, row := range rows {
		cells := strings.Split(strings.Trim(row, "| "), " | ")
		if len(cells) != 5 || !namedTest.MatchString(cells[len(cells)-1]) {
			t.Errorf("this row does not have five columns, or its last column names no test: %s", row)
		}
	}
}

// testsOfTheRepository returns the names of all tests, whatever tags they need.
func testsOfTheRepository(t *testing.T) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := entry.Name(); entry.IsDir() && (name == "testdata" || name != ".." && strings.HasPrefix(name, ".")) {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		for _, found := range testFunc.FindAllStringSubmatch(read(t, path), -1) {
			all[found[1]] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	_, scenarios, _ := strings.Cut(read(t, root+"/test/e2e/main_test.go"), "\nfunc TestE2E(")
	scenarios, _, _ = strings.Cut(scenarios, "\n}\n")
	for _, found := range scenario.FindAllStringSubmatch(scenarios, -1) {
		all["e2e/"+found[1]] = true
	}
	if !all["e2e/compromised"] || !all["e2e/kubelet-restart"] {
		t.Error("found no scenarios in test/e2e/main_test.go")
	}
	return all
}
