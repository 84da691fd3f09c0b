package driver

import (
	"context"
	"errors"

	"k8s.io/klog/v2"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// registrar tells the kubelet on which socket the driver serves. The kubelet watches
// plugins_registry for sockets. See
// https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins/
// for the mechanism that CSI drivers share, and
// https://pkg.go.dev/k8s.io/kubelet/pkg/apis/pluginregistration/v1 for the calls.
type registrar struct {
	registration.UnimplementedRegistrationServer
	name, socket string
}

// GetInfo implements registration.RegistrationServer. The versions are those of
// the CSI specification.
func (r registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type:              registration.CSIPlugin,
		Name:              r.name,
		Endpoint:          r.socket,
		SupportedVersions: []string{"1.0.0"},
	}, nil
}

// NotifyRegistrationStatus implements registration.RegistrationServer. The
// kubelet retries by itself.
func (r registrar) NotifyRegistrationStatus(ctx context.Context, status *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if status.GetPluginRegistered() {
		klog.FromContext(ctx).Info("Registered with the kubelet", "driver", r.name)
	} else {
		klog.FromContext(ctx).Error(errors.New(status.GetError()), "The kubelet refused to register the driver", "driver", r.name)
	}
	return &registration.RegistrationStatusResponse{}, nil
}
