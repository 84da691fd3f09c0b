package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"k8s.io/klog/v2"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/flexstack/step-csi/driver/tmpfs"
)

// stopTimeout is how long calls in progress may take when the driver stops.
// Kubernetes gives a pod 30 s.
const stopTimeout = 20 * time.Second

// socketCheck is how often the driver checks that its sockets still exist. A check is two
// calls of stat(2) for each socket.
const socketCheck = 2 * time.Second

// maxSocketPath is the longest path that fits into sun_path; see unix(7).
const maxSocketPath = 107

// errLost means that only another process can serve on the socket again.
var errLost = errors.New("the kubelet cannot call this process any more, and only a new one can serve again: " +
	"start the node plugin again (the kubelet does this for a pod)")

// errTaken means that another process serves on the socket.
var errTaken = errors.New("another process serves on this socket")

// socketServer is the server of a socket, such as a grpc.Server.
type socketServer interface {
	Serve(net.Listener) error
	GracefulStop()
	Stop()
}

// server has the driver's sockets, each with its server.
type server struct {
	endpoints []*endpoint
	failed    chan error // from calls of Serve
	running   sync.WaitGroup
}

// endpoint is a socket that is served again when somebody removes or replaces it.
type endpoint struct {
	path     string
	server   socketServer
	listener *unixListener
	// mount has the socket's directory, and changed is when an entry of the directory, or
	// its own name, last changed.
	mount   tmpfs.Mount
	changed unix.Timespec
	failing string // why the socket could not be served again
}

// listen opens the sockets. Calls wait until serve runs.
func (d *Driver) listen(ctx context.Context) (*server, error) {
	s := &server{failed: make(chan error, 1)}
	logger := klog.FromContext(ctx)
	calls := newGRPCServer(logger)
	csi.RegisterIdentityServer(calls, d)
	csi.RegisterNodeServer(calls, d)
	err := s.add(d.config.Socket, calls)
	if r := d.registrar; err == nil && r != nil {
		registrations := newGRPCServer(logger)
		registration.RegisterRegistrationServer(registrations, r)
		if err = s.add(r.own, registrations); err == nil {
			r.serve()
		}
	}
	if err != nil {
		s.close()
		return nil, err
	}
	if err := s.add(StatusSocket(d.config.Socket), newStatusServer(d, logger)); err != nil {
		logger.Error(err, `Cannot serve the status; everything else works, but not "step-csi status"`)
	}
	return s, nil
}

func newGRPCServer(logger klog.Logger) *grpc.Server {
	return grpc.NewServer(grpc.UnaryInterceptor(interceptor(logger)), grpc.WaitForHandlers(true))
}

// registrationSocket is where the kubelet looks for the driver of this name.
func registrationSocket(kubeletDir, driver string) string {
	return filepath.Join(kubeletDir, "plugins_registry", driver+"-reg.sock")
}

// restored is called when a socket is served again.
func (d *Driver) restored(socket string) {
	d.trust.mayHaveChanged()
	if r := d.registrar; r != nil && socket == r.own {
		r.serve()
	}
}

func (s *server) add(path string, of socketServer) error {
	listener, err := listenUnix(path)
	if err != nil {
		return err
	}
	e := &endpoint{path: path, server: of, listener: listener}
	s.endpoints = append(s.endpoints, e)
	e.mount, err = mountOf(filepath.Dir(path))
	return err
}

func (s *server) close() {
	for _, e := range s.endpoints {
		e.listener.Close()
	}
}

// serve answers calls until ctx ends or a socket is lost for good, and then finishes the
// calls in progress.
func (s *server) serve(ctx context.Context, restored func(socket string)) error {
	for _, e := range s.endpoints {
		klog.FromContext(ctx).Info("Serving", "socket", e.path)
		s.start(e)
	}
	check := time.NewTicker(socketCheck)
	defer check.Stop()
	var err error
	for serving := true; serving; {
		select {
		case <-ctx.Done():
			serving = false
		case err = <-s.failed:
			serving = false
		case <-check.C:
			err = s.check(ctx, restored)
			serving = err == nil
		}
	}
	for _, e := range s.endpoints {
		timer := time.AfterFunc(stopTimeout, e.server.Stop)
		e.server.GracefulStop()
		timer.Stop()
	}
	s.running.Wait()
	return err
}

// start serves on the endpoint's listener.
func (s *server) start(e *endpoint) {
	listener := e.listener
	s.running.Go(func() {
		err := e.server.Serve(listener)
		// Serve returns ErrServerStopped if the server was stopped before Serve started.
		if err == nil || errors.Is(err, grpc.ErrServerStopped) || listener.replaced.Load() {
			return
		}
		select {
		case s.failed <- fmt.Errorf("%s: %w", e.path, err):
		default: // another server has failed, too
		}
	})
}

// check serves the sockets again that somebody has removed or replaced. The calls in
// progress continue. The error wraps errLost or errTaken. If a socket cannot be served for
// another reason, check logs it, and the next check tries again.
func (s *server) check(ctx context.Context, restored func(socket string)) error {
	logger := klog.FromContext(ctx)
	for _, e := range s.endpoints {
		again, err := e.check()
		switch {
		case errors.Is(err, errLost), errors.Is(err, errTaken):
			return err
		case err != nil && err.Error() != e.failing:
			e.failing = err.Error()
			logger.Error(err, "Cannot check or restore a socket; trying again", "socket", e.path)
		case again:
			e.failing = ""
			logger.Info("Serving again on a socket that somebody has removed or replaced", "socket", e.path)
			restored(e.path)
			s.start(e)
		}
	}
	return nil
}

// check makes a new socket if the endpoint's socket is not at its path. In a pod, the
// socket's directory is a mount. It is lost if somebody removes this directory on the
// node, because rmdir(2) also detaches the mount in the pod (detach_mounts in
// fs/namespace.c, since Linux 3.18), and if somebody renames it, because the mount goes
// with it. The container that the kubelet starts then has a new mount.
func (e *endpoint) check() (again bool, err error) {
	directory := filepath.Dir(e.path)
	var now unix.Stat_t
	found, err := e.listener.isAtPath()
	switch {
	case err != nil:
		return false, err
	case found:
		if err := unix.Stat(directory, &now); err != nil || now.Ctim == e.changed {
			return false, err // unchanged: reading the mount table would take longer
		}
	default:
		if err := os.MkdirAll(directory, 0o750); err != nil {
			return false, err
		}
	}
	mount, err := mountOf(directory)
	switch {
	case err != nil:
		return false, err
	case !mount.Is(e.mount):
		return false, fmt.Errorf("%s: somebody has removed or replaced this directory on the node: %w", directory, errLost)
	case found:
		e.changed = now.Ctim
		return false, nil
	}
	listener, err := listenUnix(e.path)
	if err != nil {
		return false, err
	}
	e.listener.replaced.Store(true)
	e.listener.Close()
	e.listener = listener
	return true, nil
}

func mountOf(directory string) (tmpfs.Mount, error) {
	opened, err := os.OpenFile(directory, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return tmpfs.Mount{}, err
	}
	defer opened.Close()
	return tmpfs.MountOf(opened)
}

// listenUnix listens on a socket that only root can connect to. It replaces the socket
// of a process that has ended, but not a socket that still answers.
func listenUnix(path string) (*unixListener, error) {
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
		return nil, fmt.Errorf("%s: %w; stop it first", path, errTaken)
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
	l := &unixListener{UnixListener: listener, path: path}
	l.file, err = os.Lstat(temporary)
	if err = errors.Join(err, os.Chmod(temporary, 0o600), os.Rename(temporary, path)); err != nil {
		listener.Close()
		os.Remove(temporary)
		return nil, err
	}
	return l, nil
}

// unixListener has the path of the socket after the rename.
type unixListener struct {
	*net.UnixListener
	path     string
	file     fs.FileInfo // of the socket; its inode is not reused while the socket is open
	replaced atomic.Bool // by a new listener for the path
}

func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// isAtPath tells whether clients that connect to the path reach this listener.
func (l *unixListener) isAtPath() (bool, error) {
	file, err := os.Lstat(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(file, l.file), err
}

// Close closes the listener and removes its socket, but not one that has replaced it.
func (l *unixListener) Close() error {
	ours, _ := l.isAtPath() // while its inode cannot be reused
	err := l.UnixListener.Close()
	if err == nil && ours { // gRPC closes a listener more than once
		os.Remove(l.path)
	}
	return err
}
