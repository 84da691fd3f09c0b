package driver

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// Live returns an error if only a new process can serve the kubelet or renew certificates:
// a socket does not answer, or the renewals hang. It waits for the locks that every call
// needs, so the caller must limit how long it waits. ctx limits only the calls of sockets.
// Live depends neither on a CA nor on other servers, and it returns nil while the driver
// starts and stops.
func (d *Driver) Live(ctx context.Context) error {
	if !d.serving.Load() {
		return nil
	}
	d.volumes.countUnread() // takes the lock
	var stalled error
	for name, i := range d.issuers {
		if err := i.Scheduler.Stalled(); err != nil {
			stalled = errors.Join(stalled, fmt.Errorf("issuer %s: %w", name, err))
		}
	}
	err := call(ctx, d.config.Socket, func(c *grpc.ClientConn) error {
		_, err := csi.NewIdentityClient(c).Probe(ctx, &csi.ProbeRequest{})
		return err
	})
	if d.registrar != nil {
		err = errors.Join(err, call(ctx, d.registrar.own, func(c *grpc.ClientConn) error {
			_, err := registration.NewRegistrationClient(c).GetInfo(ctx, &registration.InfoRequest{})
			return err
		}))
	}
	if !d.serving.Load() { // it stopped meanwhile
		return nil
	}
	return errors.Join(stalled, err)
}

// call calls the server of a socket through a new connection, as the kubelet does.
func call(ctx context.Context, path string, do func(*grpc.ClientConn) error) error {
	connection, err := grpc.NewClient("passthrough:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}))
	if err != nil {
		return err
	}
	defer connection.Close()
	if err := do(connection); err != nil {
		return fmt.Errorf("call the socket %s: %w", path, err)
	}
	return nil
}
