package driver

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer/panics"
)

// StatusSocket returns the path of the socket of the status, by that of the CSI socket.
func StatusSocket(csiSocket string) string {
	return filepath.Join(filepath.Dir(csiSocket), "status.sock")
}

// StatusPath is the path of the status at the socket.
const StatusPath = "/v1/status"

const (
	// statusTimeout is how long a reader may take to send its request, and to read.
	statusTimeout = 10 * time.Second
	// mostReaders limits the readers at a time.
	mostReaders = 4
)

// statusServer serves the status as JSON over HTTP, on a socket that only root can
// connect to.
type statusServer struct{ *http.Server }

func newStatusServer(d *Driver, logger klog.Logger) statusServer {
	readers := make(chan struct{}, mostReaders)
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+StatusPath, func(w http.ResponseWriter, _ *http.Request) {
		select {
		case readers <- struct{}{}:
			defer func() { <-readers }()
		default:
			http.Error(w, "too many readers; try again", http.StatusServiceUnavailable)
			return
		}
		answer, err := d.encodedStatus(klog.NewContext(context.Background(), logger))
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(answer) // the reader may have gone
	})
	return statusServer{&http.Server{
		Handler: mux, ReadTimeout: statusTimeout, WriteTimeout: statusTimeout, IdleTimeout: statusTimeout, MaxHeaderBytes: 1 << 13,
	}}
}

func (d *Driver) encodedStatus(ctx context.Context) (answer []byte, err error) {
	defer panics.Recover(ctx, "status", &err)
	return json.Marshal(d.Status())
}

// Serve implements socketServer.
func (s statusServer) Serve(l net.Listener) error {
	if err := s.Server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// GracefulStop implements socketServer. Readers are quick, and may ask again.
func (s statusServer) GracefulStop() {
	limit, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if s.Shutdown(limit) != nil {
		s.Stop()
	}
}

// Stop implements socketServer.
func (s statusServer) Stop() { s.Close() }
