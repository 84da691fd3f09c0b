package driver

import (
	"context"
	"path"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/issuer/panics"
)

// interceptor gives each call a logger, and each error its code. A failed call
// is logged here, once, and nowhere else. Requests are never logged as a whole:
// they can hold tokens.
func interceptor(logger klog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		start := time.Now()
		logger := logger.WithValues("call", path.Base(info.FullMethod))
		answer, err := recovered(klog.NewContext(ctx, logger), req, handle)
		if err == nil {
			logger.V(4).Info("Call succeeded", append(callValues(req), "took", time.Since(start).String())...)
			return answer, nil
		}
		c := code(err)
		logger.Error(err, "Call failed", append(callValues(req), "code", c.String(), "took", time.Since(start).String())...)
		return nil, status.Error(c, err.Error())
	}
}

// recovered turns a panic into an error of the one call.
func recovered(ctx context.Context, req any, handle grpc.UnaryHandler) (answer any, err error) {
	defer panics.Recover(ctx, "CSI call", &err)
	return handle(ctx, req)
}

// callValues are what identifies the volume of a call.
func callValues(req any) []any {
	switch r := req.(type) {
	case *csi.NodePublishVolumeRequest:
		// An error shows in the call's own.
		pod, _, _ := attributes.Identity(r.GetVolumeContext(), "")
		return []any{"pod", pod.Namespace + "/" + pod.Name, "volumeID", r.GetVolumeId()}
	case *csi.NodeUnpublishVolumeRequest:
		return []any{"volumeID", r.GetVolumeId(), "target", r.GetTargetPath()}
	case *csi.NodeGetVolumeHealthRequest:
		return []any{"volumeID", r.GetVolumeId()}
	case *csi.NodeGetVolumeStatsRequest:
		return []any{"volumeID", r.GetVolumeId()}
	}
	return nil
}
