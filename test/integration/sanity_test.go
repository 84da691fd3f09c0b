package integration

import (
	"context"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flexstack/step-csi/test/node"
)

// stubController pretends to create volumes: the suite creates each volume before it
// publishes it, but inline volumes have no controller. The driver itself answers the
// identity calls.
type stubController struct {
	csi.UnimplementedControllerServer
	csi.UnimplementedIdentityServer
	driver csi.IdentityClient

	mu      sync.Mutex
	volumes map[string]bool
}

func (s *stubController) GetPluginInfo(ctx context.Context, r *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return s.driver.GetPluginInfo(ctx, r)
}

func (s *stubController) GetPluginCapabilities(ctx context.Context, r *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	return s.driver.GetPluginCapabilities(ctx, r)
}

func (s *stubController) Probe(ctx context.Context, r *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return s.driver.Probe(ctx, r)
}

func (*stubController) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	return &csi.ControllerGetCapabilitiesResponse{}, nil
}

func (s *stubController) CreateVolume(_ context.Context, r *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	id := "csi-" + r.GetName()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.volumes[id] = true
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{
		VolumeId: id,
		VolumeContext: map[string]string{
			"csi.storage.k8s.io/ephemeral":           "true",
			"csi.storage.k8s.io/pod.name":            "sanity-0",
			"csi.storage.k8s.io/pod.namespace":       "sanity",
			"csi.storage.k8s.io/pod.uid":             "e3f3b1a0-0000-0000-0000-000000000000",
			"csi.storage.k8s.io/serviceAccount.name": "default",
		},
	}}, nil
}

func (*stubController) DeleteVolume(context.Context, *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	return &csi.DeleteVolumeResponse{}, nil
}

func (s *stubController) ValidateVolumeCapabilities(_ context.Context, r *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case r.GetVolumeId() == "" || len(r.GetVolumeCapabilities()) == 0:
		return nil, status.Error(codes.InvalidArgument, "incomplete")
	case !s.volumes[r.GetVolumeId()]:
		return nil, status.Error(codes.NotFound, r.GetVolumeId())
	}
	return &csi.ValidateVolumeCapabilitiesResponse{
		Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{VolumeCapabilities: r.GetVolumeCapabilities()},
	}, nil
}

func TestCSISanity(t *testing.T) {
	n := newNode(t, startCA(t))
	controller := filepath.Join(t.TempDir(), "controller.sock")
	listener, err := net.Listen("unix", controller)
	node.Must(t, err)
	server := grpc.NewServer()
	stub := &stubController{driver: n.IdentityClient, volumes: map[string]bool{}}
	csi.RegisterControllerServer(server, stub)
	csi.RegisterIdentityServer(server, stub)
	done := make(chan error)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		node.Must(t, <-done)
	})
	config := sanity.NewTestConfig()
	config.Address = "unix://" + n.Socket()
	config.ControllerAddress = "unix://" + controller
	config.TargetPath = filepath.Join(n.KubeletDir, "target")
	config.StagingPath = filepath.Join(n.KubeletDir, "staging")
	sanity.Test(t, config)
}
