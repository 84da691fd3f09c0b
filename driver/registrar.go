package driver

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

const (
	// registrationLimit is how long the kubelet may take to register the driver. It looks
	// for new sockets every second.
	registrationLimit = 30 * time.Second
	// registrationReport is how often a missing registration is logged.
	registrationReport = 10 * time.Minute
	// longestRefusal is how much of the kubelet's error is kept, in bytes.
	longestRefusal = 1 << 10
)

// registrar tells the kubelet on which socket the driver serves, and knows whether the
// kubelet has registered it. The kubelet watches plugins_registry for sockets. See
// https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins/
// for the mechanism that CSI drivers share, and
// https://pkg.go.dev/k8s.io/kubelet/pkg/apis/pluginregistration/v1 for the calls.
//
// A kubelet that restarts registers the driver again, and does not say that it forgot it:
// until then, the driver counts as registered.
type registrar struct {
	registration.UnimplementedRegistrationServer
	name string
	// socket is the CSI socket, and own is the registration socket.
	socket, own string
	kubeletDir  string

	mu         sync.Mutex
	served     time.Time // when the registration socket was last made
	registered bool      // since then
	refused    string    // the kubelet's error, if it was the last answer
}

func newRegistrar(c Config, own string) *registrar {
	return &registrar{name: c.Name, socket: c.Socket, own: own, kubeletDir: c.KubeletDir, served: time.Now()}
}

// serve notes that the registration socket was made. The kubelet forgets a driver whose
// socket was removed, and registers it again when there is a new one.
func (r *registrar) serve() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.served, r.registered, r.refused = time.Now(), false, ""
}

// GetInfo implements registration.RegistrationServer. The versions are those of
// the CSI specification.
func (r *registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type:              registration.CSIPlugin,
		Name:              r.name,
		Endpoint:          r.socket,
		SupportedVersions: []string{"1.0.0"},
	}, nil
}

// NotifyRegistrationStatus implements registration.RegistrationServer. The
// kubelet retries by itself.
func (r *registrar) NotifyRegistrationStatus(ctx context.Context, status *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	r.mu.Lock()
	r.registered, r.refused = status.GetPluginRegistered(), ""
	if !r.registered {
		r.refused = refusal(status.GetError())
	}
	r.mu.Unlock()
	if status.GetPluginRegistered() {
		klog.FromContext(ctx).Info("Registered with the kubelet", "driver", r.name)
	} else {
		klog.FromContext(ctx).Error(errors.New(refusal(status.GetError())), "The kubelet refused to register the driver", "driver", r.name)
	}
	return &registration.RegistrationStatusResponse{}, nil
}

// refusal returns the kubelet's error as one bounded line.
func refusal(text string) string {
	if len(text) > longestRefusal {
		text = text[:longestRefusal] + "…"
	}
	text = strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return ' '
		}
		return c
	}, text)
	if strings.TrimSpace(text) == "" {
		return "it gave no reason"
	}
	return text
}

// err returns nil if the kubelet has registered the driver, and otherwise why not and what
// to check.
func (r *registrar) err() error {
	if r == nil { // somebody else registers the driver
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch waited := time.Since(r.served); {
	case r.registered:
		return nil
	case r.refused != "":
		return fmt.Errorf("the kubelet refused to register the driver %s, and retries: %s; check that kubeletDir of the chart (--kubelet-dir), %s, is the kubelet's --root-dir, "+
			"because the kubelet calls the socket %s by this path, and that no other driver has this name", r.name, r.refused, r.kubeletDir, r.socket)
	case waited < registrationLimit:
		return fmt.Errorf("waiting for the kubelet to register the driver %s on the socket %s", r.name, r.own)
	default:
		return fmt.Errorf("the kubelet has not registered the driver %s within %s, so pods on this node cannot get volumes: check that kubeletDir of the chart (--kubelet-dir), %s, "+
			"is the kubelet's --root-dir, because the kubelet looks for sockets such as %s below it, and check the kubelet's log", r.name, registrationLimit, r.kubeletDir, r.own)
	}
}

// report logs a registration that is missing for registrationLimit, and again every
// registrationReport, until ctx ends.
func (r *registrar) report(ctx context.Context) {
	ticker := time.NewTicker(registrationLimit / 10)
	defer ticker.Stop()
	var next time.Time
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		r.mu.Lock()
		missing := !r.registered && time.Since(r.served) >= registrationLimit
		r.mu.Unlock()
		switch {
		case !missing:
			next = time.Time{}
		case !time.Now().Before(next):
			next = time.Now().Add(registrationReport)
			klog.FromContext(ctx).Error(r.err(), "The kubelet has not registered the driver", "driver", r.name, "socket", r.own)
		}
	}
}

// gauge tells whether the kubelet has registered the driver.
func (r *registrar) gauge() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "step_csi_registered",
		Help: "1 if the kubelet has registered the driver, otherwise 0: pods on the node cannot get volumes.",
	}, func() float64 {
		if r.err() != nil {
			return 0
		}
		return 1
	})
}
