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

// interceptor adds a logger to each call and a gRPC code to each error. Only the
// interceptor logs failed calls. It never logs whole requests, because they can
// contain tokens.
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

// recovered turns a panic into an error of this call.
func recovered(ctx context.Context, req any, handle grpc.UnaryHandler) (answer any, err error) {
	defer panics.Recover(ctx, "CSI call", &err)
	return handle(ctx, req)
}

// callValues returns the log values that identify the volume of a call.
func callValues(req any) []any {
	switch r := req.(type) {
	case *csi.NodePublishVolumeRequest:
		// The call itself returns this error.
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
