package integration

import (
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/flexstack/step-csi/test/node"
)

// The plugin is ready only when the kubelet has registered it, also after its registration
// socket was removed, and says why it is not. Calls of its CSI socket before that are answered.
func TestReadyWhenRegistered(t *testing.T) {
	t.Parallel()
	n := node.New(t, binary, startCA(t))
	n.Flags = []string{"--http-address", "127.0.0.1:0"}
	n.Launch()
	address := health(t, n)
	node.Eventually(t, patience, "the plugin has its CA", func() bool {
		answer, err := n.Probe(t.Context(), &csi.ProbeRequest{})
		return err == nil && answer.GetReady().GetValue()
	})
	registered := func(want string) {
		t.Helper()
		node.Eventually(t, patience, "step_csi_registered is "+want, func() bool {
			_, body := get(t, address+"/metrics")
			return strings.Contains(body, "\nstep_csi_registered "+want+"\n")
		})
	}
	expectReady(t, address, http.StatusServiceUnavailable, "waiting for the kubelet to register the driver "+node.Driver+" on the socket "+n.RegistrationSocket())
	registered("0")
	node.Must(t, n.Register(&registration.RegistrationStatus{Error: "dial: no such file"}))
	expectReady(t, address, http.StatusServiceUnavailable, "the kubelet refused to register the driver "+node.Driver+", and retries: dial: no such file; check that kubeletDir")
	expectLive(t, address, http.StatusOK, "ok")
	node.Must(t, n.Register(&registration.RegistrationStatus{PluginRegistered: true}))
	expectReady(t, address, http.StatusOK, "ok")
	registered("1")

	node.Must(t, os.Remove(n.RegistrationSocket()))
	expectReady(t, address, http.StatusServiceUnavailable, "waiting for the kubelet to register the driver")
	node.Must(t, n.Register(&registration.RegistrationStatus{PluginRegistered: true}))
	expectReady(t, address, http.StatusOK, "ok")
}

// Where another program registers the plugin, it is ready without the kubelet's call.
func TestReadyWithoutRegistration(t *testing.T) {
	t.Parallel()
	n := node.New(t, binary, startCA(t))
	n.Flags = []string{"--kubelet-register=false"}
	expectReady(t, withHealth(t, n), http.StatusOK, "ok")
}
