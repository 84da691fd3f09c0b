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

// stopTimeout is how long calls in progress may take when the driver stops.
// Kubernetes gives a pod 30 s.
const stopTimeout = 20 * time.Second

// socketCheck is how often the driver checks that its sockets still exist.
const socketCheck = 10 * time.Second

// maxSocketPath is the longest path that fits into sun_path; see unix(7).
const maxSocketPath = 107

// server has the driver's sockets, each with its gRPC server.
type server struct {
	endpoints []endpoint
}

type endpoint struct {
	listener net.Listener
	server   *grpc.Server
}

// listen opens the sockets. Calls wait until serve runs.
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

// serve answers calls until ctx ends or a socket disappears, and then finishes the calls
// in progress.
func (s *server) serve(ctx context.Context) error {
	failed := make(chan error, len(s.endpoints))
	for _, e := range s.endpoints {
		klog.FromContext(ctx).Info("Serving", "socket", e.listener.Addr())
		go func() { failed <- e.server.Serve(e.listener) }()
	}
	running := len(s.endpoints)
	check := time.NewTicker(socketCheck)
	defer check.Stop()
	var err error
	for serving := true; serving; {
		select {
		case <-ctx.Done():
			serving = false
		case err = <-failed:
			running--
			serving = false
		case <-check.C:
			err = s.removed()
			serving = err == nil
		}
	}
	for _, e := range s.endpoints {
		timer := time.AfterFunc(stopTimeout, e.server.Stop)
		e.server.GracefulStop()
		timer.Stop()
	}
	for range running {
		// Serve returns this error if the server was stopped before Serve started.
		if ended := <-failed; !errors.Is(ended, grpc.ErrServerStopped) {
			err = errors.Join(err, ended)
		}
	}
	return err
}

// removed returns an error if a socket has disappeared: the kubelet can no longer call
// the driver. Only another process can repair this. In a pod, the directory of the CSI
// socket is a mount, and when somebody removes this directory on the node, the kernel
// detaches the mount: rmdir(2) has done so since Linux 3.18 (detach_mounts in
// fs/namespace.c). The container that the kubelet starts then has a new one.
func (s *server) removed() error {
	for _, e := range s.endpoints {
		path := e.listener.Addr().String()
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: somebody has removed this socket, so that the kubelet cannot call the node plugin; "+
				"start the node plugin again (the kubelet does this for a pod)", path)
		}
	}
	return nil
}

// listenUnix listens on a socket that only root can connect to. It replaces the socket
// of a process that has ended, but not a socket that still answers.
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
		// The other process may be alive but busy.
		return nil, fmt.Errorf("%s: cannot tell whether another process serves on this socket: %w", path, err)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != os.ModeSocket {
		return nil, fmt.Errorf("%s: this file is not a socket; remove it", path)
	}
	// The socket gets its mode under a temporary name before a rename publishes it. The
	// temporary name is fixed, so that the next start replaces the socket of a process
	// that was killed here.
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

// unixListener has the path of the socket after the rename.
type unixListener struct {
	*net.UnixListener
	path string
}

func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

func (l *unixListener) Close() error {
	err := l.UnixListener.Close()
	if err == nil { // gRPC closes a listener more than once
		os.Remove(l.path)
	}
	return err
}
