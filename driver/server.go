package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"k8s.io/klog/v2"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// stopTimeout is how long calls in flight may take to finish when the driver
// stops. Kubernetes gives a pod 30 s.
const stopTimeout = 20 * time.Second

// maxSocketPath is what sun_path holds; see unix(7).
const maxSocketPath = 107

// server is the driver's sockets, with what is served on them.
type server struct {
	endpoints []endpoint
}

type endpoint struct {
	listener net.Listener
	server   *grpc.Server
}

// listen opens the sockets. Calls wait until serve.
func (d *Driver) listen(ctx context.Context) (*server, error) {
	s := &server{}
	logger := klog.FromContext(ctx)
	err := s.add(d.config.Socket, logger, func(g *grpc.Server) {
		csi.RegisterIdentityServer(g, d)
		csi.RegisterNodeServer(g, d)
	})
	if err == nil && d.config.Register {
		path := filepath.Join(d.config.KubeletDir, "plugins_registry", d.config.Name+"-reg.sock")
		err = s.add(path, logger, func(g *grpc.Server) {
			registration.RegisterRegistrationServer(g, registrar{name: d.config.Name, socket: d.config.Socket})
		})
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *server) add(path string, logger klog.Logger, register func(*grpc.Server)) error {
	listener, err := listenUnix(path)
	if err != nil {
		return err
	}
	g := grpc.NewServer(grpc.UnaryInterceptor(interceptor(logger)), grpc.WaitForHandlers(true))
	register(g)
	s.endpoints = append(s.endpoints, endpoint{listener, g})
	return nil
}

func (s *server) close() {
	for _, e := range s.endpoints {
		e.listener.Close()
	}
}

// serve answers calls until ctx ends, and then finishes those in flight.
func (s *server) serve(ctx context.Context) error {
	failed := make(chan error, len(s.endpoints))
	for _, e := range s.endpoints {
		klog.FromContext(ctx).Info("Serving", "socket", e.listener.Addr())
		go func() { failed <- e.server.Serve(e.listener) }()
	}
	running := len(s.endpoints)
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
		running--
	}
	for _, e := range s.endpoints {
		timer := time.AfterFunc(stopTimeout, e.server.Stop)
		e.server.GracefulStop()
		timer.Stop()
	}
	for range running {
		// A server that is stopped before it has begun to serve says so.
		if ended := <-failed; !errors.Is(ended, grpc.ErrServerStopped) {
			err = errors.Join(err, ended)
		}
	}
	return err
}

// removeDirectory removes the directory of the CSI socket if it is the driver's
// own, by its name, and nothing else is in it: an uninstalled driver leaves
// nothing. The next start makes it again.
func (d *Driver) removeDirectory() {
	if directory := filepath.Dir(d.config.Socket); filepath.Base(directory) == d.config.Name {
		os.Remove(directory)
	}
}

// listenUnix listens on a socket that only root can connect to, instead of one
// that a process left behind which has ended. It refuses to take the place of
// one that still answers.
func listenUnix(path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("%s: the path of a socket has at most %d bytes; choose a shorter --csi-socket or --kubelet-dir", path, maxSocketPath)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, err
	}
	connection, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		connection.Close()
		return nil, fmt.Errorf("%s: another process serves on this socket; stop it first", path)
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ECONNREFUSED):
		// It may well be alive, and only busy.
		return nil, fmt.Errorf("%s: cannot tell whether another process serves on this socket: %w", path, err)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != os.ModeSocket {
		return nil, fmt.Errorf("%s: there is a file of another kind in the socket's place; remove it", path)
	}
	// Made under another name and renamed, it has its mode before anybody can
	// find it. The name is always the same: one that is left by a process which was
	// killed here is replaced, too.
	temporary := filepath.Join(filepath.Dir(path), ".new")
	if err := os.RemoveAll(temporary); err != nil {
		return nil, err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: temporary, Net: "unix"})
	if err != nil {
		return nil, err
	}
	listener.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(temporary, 0o600), os.Rename(temporary, path)); err != nil {
		listener.Close()
		os.Remove(temporary)
		return nil, err
	}
	return &unixListener{UnixListener: listener, path: path}, nil
}

// unixListener has the path that it was renamed to.
type unixListener struct {
	*net.UnixListener
	path string
}

func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

func (l *unixListener) Close() error {
	err := l.UnixListener.Close()
	if err == nil { // gRPC closes it more than once
		os.Remove(l.path)
	}
	return err
}
