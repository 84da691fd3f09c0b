package driver

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

// publishRequest is what the kubelet sends for a volume without readOnly.
func publishRequest(mountFlags ...string) *csi.NodePublishVolumeRequest {
	return &csi.NodePublishVolumeRequest{
		VolumeId: "csi-1",
		VolumeCapability: &csi.VolumeCapability{
			AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{MountFlags: mountFlags, VolumeMountGroup: "1000"}},
		},
		VolumeContext: map[string]string{
			"csi.storage.k8s.io/ephemeral":           "true",
			"csi.storage.k8s.io/pod.name":            "web-0",
			"csi.storage.k8s.io/pod.namespace":       "shop",
			"csi.storage.k8s.io/pod.uid":             "uid-web-0",
			"csi.storage.k8s.io/serviceAccount.name": "web",
			"service-names":                          "web",
		},
	}
}

// The pod needs readOnly: true only where the container runtime would relabel the volume.
func TestReadOnlyAndSELinux(t *testing.T) {
	const context, own = "system_u:object_r:container_file_t:s0:c1,c2", "system_u:object_r:container_file_t:s0"
	const quoted = `context="` + context + `"`
	const missing = "in pod shop/web-0, add the line readOnly: true to the volume, below csi: and driver: csi.example"
	for name, test := range map[string]struct {
		selinux    bool
		configured string
		flags      []string
		readOnly   bool
		want, err  string
	}{
		"without SELinux":                        {},
		"without SELinux, a context":             {flags: []string{quoted}},
		"without SELinux, a configured context":  {configured: own},
		"without SELinux, an unreadable context": {flags: []string{`context="x`}},
		"SELinux":                                {selinux: true, err: missing},
		"SELinux and other flags":                {selinux: true, flags: []string{"noatime", "fscontext=" + context}, err: missing},
		"SELinux and an empty context":           {selinux: true, flags: []string{`context=""`}, err: missing},
		"SELinux and readOnly":                   {selinux: true, readOnly: true},
		"the kubelet's context":                  {selinux: true, flags: []string{"noatime", quoted}, want: context},
		"the kubelet's context and readOnly":     {selinux: true, flags: []string{quoted}, readOnly: true, want: context},
		"a context without quotes":               {selinux: true, flags: []string{"context=" + context}, want: context},
		"the configured context":                 {selinux: true, configured: own, want: own},
		"the kubelet's context goes first":       {selinux: true, configured: own, flags: []string{quoted}, want: context},
		"an unreadable context":                  {selinux: true, readOnly: true, flags: []string{`context="x`}, err: `the mount flag "context=\"x" is not quoted correctly`},
	} {
		d := &Driver{config: Config{Name: "csi.example", NodeName: "node", SELinux: test.selinux, SELinuxContext: test.configured}}
		request := publishRequest(test.flags...)
		request.Readonly = test.readOnly
		spec, _, err := d.parsePublish(request, "target")
		if test.err != "" {
			if !errors.Is(err, errInvalid) || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil || spec.SELinuxContext != test.want {
			t.Errorf("%s: context %q, error %v", name, spec.SELinuxContext, err)
		}
		if spec.MountGroup != "1000" || !maps.Equal(spec.Attributes, map[string]string{"service-names": "web"}) {
			t.Errorf("%s: %+v", name, spec)
		}
	}
}

// The error says why the pod needs the line, and errors about the pod's identity come
// first.
func TestReadOnlyErrorIsActionable(t *testing.T) {
	d := &Driver{config: Config{Name: "csi.example", NodeName: "node", SELinux: true}}
	_, _, err := d.parsePublish(publishRequest(), "target")
	for _, part := range []string{"the node has SELinux", "relabel", "shop/web-0", "readOnly: true", "--selinux-context"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("no %q in %v", part, err)
		}
	}
	request := publishRequest()
	delete(request.VolumeContext, "csi.storage.k8s.io/pod.uid")
	if _, _, err := d.parsePublish(request, "target"); err == nil || !strings.Contains(err.Error(), "podInfoOnMount") || strings.Contains(err.Error(), "SELinux") {
		t.Error(err)
	}
}

// Another context in a republish is no change: the kernel cannot change the context of a
// mounted file system, and the kubelet never asks for it.
func TestContextIsNotCompared(t *testing.T) {
	d := &Driver{config: Config{Name: "csi.example", NodeName: "node", SELinux: true}}
	first, _, err := d.parsePublish(publishRequest(`context="a:b:c:s0:c1,c2"`), "target")
	if err != nil {
		t.Fatal(err)
	}
	second, _, err := d.parsePublish(publishRequest(`context="a:b:c:s0:c3,c4"`), "target")
	if err != nil || first.SELinuxContext == second.SELinuxContext || !first.Same(second) {
		t.Errorf("%+v, %+v, %v", first, second, err)
	}
}
