package chart

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// In both modes, only the node plugin has the additional roots and the public roots, and its
// pod mounts the ConfigMap. The names of the ConfigMap and the key appear nowhere else.
func TestAnchors(t *testing.T) {
	values := []string{"--set", "issuers.default.additionalRoots.configMap=trust-manager,issuers.default.additionalRoots.key=bundle.pem,issuers.default.publicRoots=true"}
	for _, mode := range []string{"ra", "node"} {
		objects := render(t, append(values, "--set", "mode="+mode)...)
		plugin := objects["DaemonSet"]
		got := at(config(t, plugin), "issuers", "default").(object)
		if got["additionalRootsFile"] != "issuers/default/additional.crt" || got["publicRoots"] != true {
			t.Errorf("mode %s: %v", mode, got)
		}
		if !strings.Contains(text(t, configSources(plugin)), `{"configMap":{"items":[{"key":"bundle.pem","path":"issuers/default/additional.crt"}],"name":"trust-manager"}}`) {
			t.Errorf("mode %s: %s", mode, text(t, configSources(plugin)))
		}
		directory := pluginFiles(t, objects)
		if err := startPlugin(directory); !refusedForTheDirectory(err) {
			t.Errorf("mode %s: %v", mode, err)
		}
		if err := os.Remove(filepath.Join(directory, "issuers/default/additional.crt")); err != nil {
			t.Fatal(err)
		}
		if err := startPlugin(directory); err == nil || !strings.Contains(err.Error(), "additionalRootsFile (in the chart: additionalRoots): stat ") {
			t.Errorf("mode %s without the file: %v", mode, err)
		}
		if mode == "ra" {
			authority := text(t, objects["ra/Deployment"])
			if strings.Contains(authority, "trust-manager") || strings.Contains(authority, "additional") || strings.Contains(authority, "publicRoots") {
				t.Error("the registration authority has the additional roots")
			}
			if err := startAuthority(authorityFiles(t, objects)); !refusedForTheAddress(err) {
				t.Error(err)
			}
		}
	}
	got := at(config(t, render(t)["DaemonSet"]), "issuers", "default").(object)
	if got["additionalRootsFile"] != nil || got["publicRoots"] != nil {
		t.Errorf("by default: %v", got)
	}
}
