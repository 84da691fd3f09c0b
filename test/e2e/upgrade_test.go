//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	previousTag = "ghcr.io/flexstack/step-csi:previous"
	// previousCommit is the version before: there is no tag yet.
	previousCommit = "5c0c1a5"
)

// From this version to the version before, by its own chart, and back, by an upgrade and by
// a rollback, as the page about them says. No pod misses a file, and each version renews the volumes of the other.
func upgrade(t *testing.T) {
	p := witness(t, "upgrade")
	leaf := p.files(t)
	previous := loadPrevious(t)
	must(t, install(previous, "--set", "image.tag=previous,ra.terminationGracePeriodSeconds=4,issuers.default.duration.min=5s"))
	expectImage(t, previousTag)
	leaf = p.waitRotation(t, leaf, patience)
	old := witnessIn(t, p.namespace, "old")
	oldLeaf := old.files(t)

	document := openPage(t, "upgrade.md")
	document.sh(t, "helm get values")
	if values := document.read(t, "values.yaml"); !strings.Contains(values, "tag: previous") {
		t.Errorf("the values of the release are\n%s", values)
	}
	document.changeTo(t, "image: {tag: dev}\nrenewal: {minInterval: 3s}\n")
	document.sh(t, "kubectl diff")
	expectImage(t, pluginTag)
	if out := document.sh(t, "Found mounted volumes"); !strings.Contains(out, "count=") {
		t.Errorf("the log has\n%s", out)
	}
	leaf = p.waitRotation(t, leaf, patience)
	oldLeaf = old.waitRotation(t, oldLeaf, patience)

	document.sh(t, "helm rollback")
	waitPlugin(t)
	if out := document.sh(t, "lastState"); !strings.Contains(out, "step-csi-ra-") {
		t.Errorf("the pods are\n%s", out)
	}
	expectImage(t, previousTag)
	leaf = p.waitRotation(t, leaf, patience)
	oldLeaf = old.waitRotation(t, oldLeaf, patience)

	// A changed configuration restarts the plugin.
	must(t, installPlugin())
	before := pluginPod(t)
	must(t, installPlugin("--set", "issuers.default.duration.max=23h,issuers.default.duration.default=23h"))
	if pluginPod(t) == before {
		t.Error("a changed configuration did not restart the plugin's pod")
	}
	must(t, installPlugin())
	p.waitRotation(t, leaf, patience)
	old.waitRotation(t, oldLeaf, patience)
	sawAll(t, p)
	sawAll(t, old)
}

// loadPrevious builds the image of the version before, loads it into the cluster, and
// returns the directory of that version.
func loadPrevious(t *testing.T) string {
	t.Helper()
	commit := previousCommit
	if _, err := command("git", "cat-file", "-e", commit+"^{commit}"); err != nil {
		all, err := command("git", "rev-list", "HEAD")
		must(t, err)
		commits := strings.Fields(all)
		commit = commits[len(commits)-1]
		fmt.Printf("    this clone does not have the commit %s: the version before is its oldest, %s\n", previousCommit, commit)
	}
	directory := t.TempDir()
	_, err := command("sh", "-euc", "git archive "+commit+" | tar -x -C "+directory)
	must(t, err)
	_, err = tool("load", previousImage(t, commit, directory))
	must(t, err)
	return directory
}

// previousImage returns the archive of the version before. It is in the cache of the other
// images of the tests, or is built from the sources in the directory.
func previousImage(t *testing.T, commit, directory string) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	must(t, err)
	archive := filepath.Join(cache, "step-csi", "images", "previous-"+commit+".tar")
	// The modification time is the time of the last use.
	if os.Chtimes(archive, time.Time{}, time.Now()) == nil {
		return archive
	}
	building := fmt.Sprintf("%s.%d", archive, os.Getpid())
	defer os.Remove(building)
	must(t, buildImages(directory, "BASE=local", "VERSION=previous", "IMAGE="+previousTag, "IMAGE_ARCHIVE="+building, "RELOAD_IMAGE="+reloadTag+"-previous"))
	must(t, os.Rename(building, archive))
	return archive
}

func expectImage(t *testing.T, want string) {
	t.Helper()
	if image := kubectl(t, "-n", plugin, "get", "pods", "-l", "app.kubernetes.io/name=step-csi", "--field-selector=status.phase=Running", "-o", "jsonpath={.items[0].spec.containers[0].image}"); image != want {
		t.Errorf("the plugin's image is %s, want %s", image, want)
	}
}

func pluginPod(t *testing.T) string {
	t.Helper()
	return kubectl(t, "-n", plugin, "get", "pods", "-l", "app.kubernetes.io/name=step-csi", "-o", "jsonpath={.items[*].metadata.name}")
}
