package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/issuer/schedule"
)

// NodeGetVolumeStats implements csi.NodeServer.
func (d *Driver) NodeGetVolumeStats(_ context.Context, req *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	if req.GetVolumeId() == "" || req.GetVolumePath() == "" {
		return nil, fmt.Errorf("%w: volume_id or volume_path is missing", errInvalid)
	}
	_, target, err := d.openVolume(req.GetVolumeId(), req.GetVolumePath())
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

// NodeGetVolumeHealth implements csi.NodeServer. It replaces the volume condition of
// NodeGetVolumeStats, since version 1.13 of the specification. A volume is degraded
// when its certificate has expired or cannot be renewed, or its roots are not up to date.
func (d *Driver) NodeGetVolumeHealth(_ context.Context, req *csi.NodeGetVolumeHealthRequest) (*csi.NodeGetVolumeHealthResponse, error) {
	if req.GetVolumeId() == "" {
		return nil, fmt.Errorf("%w: volume_id is missing", errInvalid)
	}
	health := &csi.VolumeHealth{VolumeId: req.GetVolumeId()}
	degraded := func(reason, message string) {
		health.HealthStatuses = []*csi.VolumeHealth_VolumeHealthEntry{{
			Status: csi.VolumeHealthErrorType_DEGRADED, Reason: reason, Message: message,
		}}
	}
	path, _ := d.relative(req.GetVolumePublishPath())
	if err := d.volumes.allUnread()[path]; err != nil {
		degraded(reasonFailing, fmt.Sprintf("the certificate is not renewed until the kubelet publishes the volume again: %v", err))
		return &csi.NodeGetVolumeHealthResponse{VolumeHealth: health}, nil
	}
	v, target, err := d.openVolume(req.GetVolumeId(), req.GetVolumePublishPath())
	if err != nil {
		return nil, err
	}
	target.Close()
	if reason, message := troubleOf(v, v.State(), time.Now()); reason != "" {
		degraded(reason, message)
	}
	return &csi.NodeGetVolumeHealthResponse{VolumeHealth: health}, nil
}

// The reasons in a volume's health.
const (
	reasonExpired = "CertificateExpired"
	reasonFailing = "RenewalFailing"
)

// openVolume finds the volume and opens its target. An empty path means the volume's
// own target.
func (d *Driver) openVolume(id, path string) (*volume.Volume, *os.File, error) {
	v := d.volumes.get(id)
	if v == nil { // a volume of an earlier process
		found := d.volumes.allFound()
		if i := slices.IndexFunc(found, func(v *volume.Volume) bool { return v.VolumeID == id }); i >= 0 {
			v = found[i]
		}
	}
	if relative, _ := d.relative(path); v == nil || path != "" && v.Target != relative {
		return nil, nil, fmt.Errorf("%w: %s at %q", errNotFound, id, path)
	}
	target, err := v.Open()
	if errors.Is(err, volume.ErrGone) {
		return nil, nil, fmt.Errorf("%w: %s: %w", errNotFound, id, err)
	}
	return v, target, err
}

// troubleOf describes an unhealthy volume in the state. For a healthy volume, both texts are
// empty.
func troubleOf(v *volume.Volume, s schedule.State, now time.Time) (reason, message string) {
	switch {
	case !v.TrustOnly():
		return trouble(s, now)
	case s.Err == nil:
		return "", ""
	}
	return reasonFailing, fmt.Sprintf("the roots in the volume do not follow those of the issuer: %v", s.Err)
}

// trouble describes an unhealthy volume with a certificate. For a healthy volume, both texts
// are empty.
func trouble(s schedule.State, now time.Time) (reason, message string) {
	expiry := s.Validity.NotAfter.UTC().Format(time.RFC3339)
	switch {
	case s.Validity.NotAfter.IsZero() && s.Err == nil:
		return "", "" // nothing is known until the kubelet publishes the volume again
	case !now.Before(s.Validity.NotAfter):
		reason, message = reasonExpired, "the certificate expired at "+expiry
		if limitedBy := s.Validity.LimitedBy; limitedBy != "" {
			message = limitedBy + ", which the certificate needs, expired at " + expiry
		}
	case s.Err != nil:
		reason, message = reasonFailing, "the certificate is valid until "+expiry+" but cannot be renewed"
		if errors.Is(s.Err, schedule.ErrLimited) {
			message = "the certificate is valid until " + expiry + " only"
		}
	default:
		return "", ""
	}
	switch {
	case s.Err != nil && s.Failures == 0: // no renewal has been tried
		message += fmt.Sprintf(": %v", s.Err)
	case s.Err != nil:
		next := "under way"
		if s.Next.After(now) {
			next = s.Next.UTC().Format(time.RFC3339)
		}
		message += fmt.Sprintf("; failures in a row: %d, the last one: %v; next retry: %s", s.Failures, s.Err, next)
	}
	return reason, message
}
