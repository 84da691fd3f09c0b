package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/flexstack/step-csi/driver/schedule"
	"github.com/flexstack/step-csi/driver/tmpfs"
)

// NodeGetVolumeStats implements csi.NodeServer.
func (d *Driver) NodeGetVolumeStats(_ context.Context, req *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	if req.GetVolumeId() == "" || req.GetVolumePath() == "" {
		return nil, invalid(errors.New("volume_id or volume_path is missing"))
	}
	_, target, err := d.openTracked(req.GetVolumeId(), req.GetVolumePath())
	if err != nil {
		return nil, err
	}
	defer target.Close()
	usage, err := tmpfs.Stat(target)
	if err != nil {
		return nil, err
	}
	return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
		{Unit: csi.VolumeUsage_BYTES, Total: usage.Bytes, Available: usage.BytesFree, Used: usage.Bytes - usage.BytesFree},
		{Unit: csi.VolumeUsage_INODES, Total: usage.Inodes, Available: usage.InodesFree, Used: usage.Inodes - usage.InodesFree},
	}}, nil
}

// NodeGetVolumeHealth implements csi.NodeServer: what the volume condition of
// NodeGetVolumeStats was before version 1.13 of the specification. A volume is
// degraded when its certificate is expired or cannot be renewed.
func (d *Driver) NodeGetVolumeHealth(_ context.Context, req *csi.NodeGetVolumeHealthRequest) (*csi.NodeGetVolumeHealthResponse, error) {
	if req.GetVolumeId() == "" {
		return nil, invalid(errors.New("volume_id is missing"))
	}
	v, target, err := d.openTracked(req.GetVolumeId(), req.GetVolumePublishPath())
	if err != nil {
		return nil, err
	}
	target.Close()
	health := &csi.VolumeHealth{VolumeId: req.GetVolumeId()}
	if reason, message := trouble(v.state(), time.Now()); reason != "" {
		health.HealthStatuses = []*csi.VolumeHealth_VolumeHealthEntry{{
			Status: csi.VolumeHealthErrorType_DEGRADED, Reason: reason, Message: message,
		}}
	}
	return &csi.NodeGetVolumeHealthResponse{VolumeHealth: health}, nil
}

// openTracked finds the volume and opens its target. An empty path is any.
func (d *Driver) openTracked(id, path string) (*volume, *os.File, error) {
	v := d.tracked(id)
	if relative, _ := d.relative(path); v == nil || path != "" && v.record.Target != relative {
		return nil, nil, fmt.Errorf("%w: %s at %q", errNotFound, id, path)
	}
	target, err := d.openMounted(v.record.VolumeID, v.record.Target)
	if errors.Is(err, errGone) {
		return nil, nil, fmt.Errorf("%w: %s: %w", errNotFound, id, err)
	}
	return v, target, err
}

// trouble says what is wrong with the volume, in one word and in a sentence, or
// nothing.
func trouble(s schedule.State, now time.Time) (reason, message string) {
	expiry := s.Validity.NotAfter.UTC().Format(time.RFC3339)
	switch {
	case !now.Before(s.Validity.NotAfter):
		reason, message = "CertificateExpired", "the certificate expired at "+expiry
	case s.Err != nil:
		reason, message = "RenewalFailing", "the certificate is valid until "+expiry+" but cannot be renewed"
	default:
		return "", ""
	}
	if s.Err != nil {
		next := "under way"
		if s.Next.After(now) {
			next = s.Next.UTC().Format(time.RFC3339)
		}
		message += fmt.Sprintf("; failures in a row: %d, the last one: %v; next try: %s", s.Failures, s.Err, next)
	}
	return reason, message
}
