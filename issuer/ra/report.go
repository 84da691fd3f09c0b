package ra

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/clock"
	"github.com/flexstack/step-csi/issuer/ra/rapb"
)

// maxReport bounds the text of a report, in bytes. The registration authority uses less.
const maxReport = 4 << 10

// Report has the registration authority make an event of the pod. Without a valid token
// of the pod it does not call: the outcome is NoPodToken. The outcome is Unsupported if
// the registration authority makes no events.
func (s *Signer) Report(ctx context.Context, pod issuer.Applicant, r issuer.Report) error {
	if now := time.Now(); !pod.Token.ValidAt(now.Add(-clock.Tolerance)) {
		return fmt.Errorf("%w to show to the registration authority %s: %s", issuer.NoPodToken, s.url, pod.Token.Missing(now))
	}
	request := &rapb.ReportRequest{
		PodToken: pod.Token.Reveal(), Reason: string(r.Reason), Volume: r.Volume,
		// Protocol buffers reject strings that are not UTF-8.
		Text: strings.ToValidUTF8(r.Text[:min(len(r.Text), maxReport)], "?"),
	}
	return s.call(ctx, callReport, func(ctx context.Context, options ...grpc.CallOption) error {
		_, err := s.client.Report(ctx, request, options...)
		if status.Code(err) == codes.Unimplemented {
			err = fmt.Errorf("%w: this version of the registration authority makes no events of pods; upgrade it: %w", issuer.Unsupported, err)
		}
		return err
	})
}
