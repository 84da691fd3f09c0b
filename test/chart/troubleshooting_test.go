package chart

import (
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// notOurs are messages in docs/troubleshooting.md that other programs print, and names.
var notOurs = map[string][]string{
	"Kubernetes": {
		"not found in the list of registered CSI drivers", "MountVolume.SetUp failed for volume", "references non-existent secret key", "fetching NodePublishSecretRef default/orders-keystore failed",
		"not found", "hostPath type check failed", `is mounted on "/" but it is not a shared mount`, "cannot unmarshal bool",
		"insufficient quota to match these scopes", "violates PodSecurity", "would violate PodSecurity",
	},
	"OpenShift": {"unable to validate against any security context constraint"},
	"Helm": {
		"additional properties", "not allowed", "got string, want object", "exists and cannot be imported into the current release",
		"context deadline exceeded", "no matches for kind",
	},
	"step-ca": {"requested duration of", "is more than", "dns name", "not allowed", "error applying certificate template"},
	"Linux":   {"cannot clear locked flags MS_RDONLY", "fsconfig context=", "invalid argument"},
	"Go":      {"certificate signed by unknown authority", "no such host", "connection refused", "no route to host"},
	"values and objects": {
		"issuers.default.url", "issuers.default.caBundleFile", "step-csi-check-config",
		"provisioner.keyFile (in the chart: keySecret)", "provisioner.certificateFile (in the chart: certificateSecret)",
		"provisioner.privateKeyFile (in the chart: certificateSecret)",
	},
}

var (
	// searched is the message of a log line, as commands of the documentation search for it.
	searched      = regexp.MustCompile(`(?:grep|-e) '"([A-Z][^"']*)"?'`)
	quotedMessage = regexp.MustCompile("`([^`]+)`")
	// variable is a part of a message that differs.
	variable = regexp.MustCompile(`…|<[A-Za-z ]+>|"[^"]*"`)
	// concatenation is where a Go string continues, and inserted what a Go string has in the
	// middle without a verb.
	concatenation = regexp.MustCompile(`"\s*\+\s*"`)
	inserted      = regexp.MustCompile(`"\s*\+\s*[\w.()]+\s*\+\s*"`)
)

// programs returns the sources of the programs and the templates of the chart, with the
// strings of several lines in one.
func programs(t *testing.T) string {
	t.Helper()
	var sources strings.Builder
	for _, directory := range []string{root + "/cmd", root + "/driver", root + "/issuer", chart + "/templates"} {
		err := filepath.WalkDir(directory, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && !entry.IsDir() && !strings.HasSuffix(path, "_test.go") {
				text := inserted.ReplaceAllString(concatenation.ReplaceAllString(read(t, path), ""), "%s")
				sources.WriteString(strings.ReplaceAll(text, `\"`, `"`))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return sources.String()
}

// The log lines that commands in the documentation search for are those that step-csi prints.
func TestSearchedLogLines(t *testing.T) {
	ours, checked := programs(t), 0
	for _, page := range pages(t) {
		for _, found := range searched.FindAllStringSubmatch(read(t, page), -1) {
			checked++
			if !strings.Contains(ours, found[1]) {
				t.Errorf("%s searches for %s, which no program prints", page, found[0])
			}
		}
	}
	if checked < 5 {
		t.Errorf("found only %d searched log lines", checked)
	}
}

// Every message that docs/troubleshooting.md explains is one that a program prints: when a
// text changes, its row has to change, too.
func TestTroubleshootingMessages(t *testing.T) {
	ours := programs(t)
	var formats strings.Builder
	for line := range strings.Lines(ours) {
		if strings.Contains(line, "%") {
			formats.WriteString(line)
		}
	}
	known := func(part string) bool {
		if strings.Contains(ours, part) || formatted(formats.String(), part) {
			return true
		}
		for _, texts := range notOurs {
			for _, text := range texts {
				if strings.Contains(text, part) {
					return true
				}
			}
		}
		return false
	}
	checked, messages := 0, false
	for line := range strings.Lines(read(t, root+"/docs/troubleshooting.md")) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		switch {
		case !strings.HasPrefix(line, "|"):
			messages = false
			continue
		case strings.Contains(cells[0], "contains"), strings.Contains(cells[0], "Helm prints"):
			messages = true
			continue
		case !messages:
			continue
		}
		for _, message := range quotedMessage.FindAllStringSubmatch(cells[0], -1) {
			for _, part := range variable.Split(message[1], -1) {
				if part = strings.Trim(part, " ',.:()"); len(part) < 4 {
					continue
				}
				checked++
				if !known(part) {
					t.Errorf("docs/troubleshooting.md explains `%s`, but no program prints %q", message[1], part)
				}
			}
		}
	}
	if checked < 50 {
		t.Errorf("found only %d messages", checked)
	}
}

// formatted tells whether one of the formats can make the message: a verb stands for a word,
// and at least half of the words are those of the message.
func formatted(formats, message string) bool {
	words := strings.Fields(message)
	for i, word := range words {
		words[i] = "(?:" + regexp.QuoteMeta(word) + `|"?%[a-z]"?)`
	}
	for _, found := range regexp.MustCompile(strings.Join(words, " ")).FindAllString(formats, -1) {
		if 2*strings.Count(found, "%") <= len(words) {
			return true
		}
	}
	return false
}
