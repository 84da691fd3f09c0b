package node

import (
	"context"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/go-logr/logr"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/driver"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
)

// Serve runs the driver in the test's own process, for what has to be measured or
// looked into there. It logs nothing. Stop ends it, and so does the end of the test.
func (k *Kubelet) Serve(i *issuer.Issuer) (d *driver.Driver, stop func()) {
	k.T.Helper()
	d, err := driver.New(driver.Config{
		Name: Driver, NodeName: "node-1", KubeletDir: k.KubeletDir, Socket: k.Socket(), Register: true,
		ClusterDomain: names.Must(names.ParseClusterDomain("cluster.local")), TrustDomain: names.Must(names.ParseTrustDomain("cluster.local")),
		Issuers: map[string]driver.Issuer{"default": {
			Issuer: i, RootsRefresh: time.Minute,
		}},
	})
	Must(k.T, err)
	ctx, cancel := context.WithCancel(klog.NewContext(context.Background(), logr.Discard()))
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		k.T.Helper()
		cancel()
		Must(k.T, <-done)
	})
	k.T.Cleanup(stop)
	_, err = k.NodeGetInfo(k.T.Context(), &csi.NodeGetInfoRequest{}) // it serves
	Must(k.T, err)
	return d, stop
}
