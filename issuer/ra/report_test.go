package ra

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/ra/rapb"
)

// reportedTo is a registration authority that answers reports with an error.
type reportedTo struct {
	rapb.RegistrationAuthorityClient
	requests []*rapb.ReportRequest
	err      error
}

func (r *reportedTo) Report(_ context.Context, request *rapb.ReportRequest, _ ...grpc.CallOption) (*rapb.ReportResponse, error) {
	r.requests = append(r.requests, request)
	return &rapb.ReportResponse{}, r.err
}

func reporting(err error) (*Signer, *reportedTo) {
	client := &reportedTo{err: err}
	return &Signer{
		config: Config{Token: func() ([]byte, error) { return []byte("a.plugin.c"), nil }, Timeout: time.Minute},
		url:    &url.URL{Scheme: "https", Host: "ra.example"}, client: client,
	}, client
}

var webToken = issuer.Applicant{Token: issuer.NewToken("a.web.c", time.Time{})}

// A report has the pod's token, and a text that can be sent, whatever an error contains.
func TestReport(t *testing.T) {
	for _, text := range []string{"plain", "bad \xff utf-8", strings.Repeat("ü", 40<<10), "x" + strings.Repeat("ü", 40<<10)} {
		s, client := reporting(nil)
		if err := s.Report(t.Context(), webToken, issuer.Report{Reason: issuer.RenewalFailing, Volume: "tls", Text: text}); err != nil {
			t.Fatal(err)
		}
		r := client.requests[0]
		if r.GetPodToken() != "a.web.c" || r.GetReason() != "RenewalFailing" || r.GetVolume() != "tls" || len(r.GetText()) > maxReport || !utf8.ValidString(r.GetText()) {
			t.Errorf("%d bytes: %+v", len(text), r)
		}
		if _, err := proto.Marshal(r); err != nil {
			t.Error(err)
		}
	}
}

// The outcome says whether to try again. A registration authority of an earlier version
// does not know the call.
func TestOutcomesOfReports(t *testing.T) {
	for name, test := range map[string]struct {
		err  error
		want issuer.Outcome
	}{
		"an event":           {nil, issuer.OK},
		"an earlier version": {status.Error(codes.Unimplemented, "unknown method Report"), issuer.Unsupported},
		"no events":          {Status(codes.FailedPrecondition, fmt.Errorf("%w: no events", issuer.Unsupported)), issuer.Unsupported},
		"denied":             {Status(codes.PermissionDenied, issuer.Denied), issuer.Denied},
		"too many":           {status.Error(codes.ResourceExhausted, "of the pod"), issuer.Throttled},
		"down":               {status.Error(codes.Unavailable, "connection refused"), issuer.Unavailable},
	} {
		s, _ := reporting(test.err)
		if err := s.Report(t.Context(), webToken, issuer.Report{}); issuer.OutcomeOf(err) != test.want {
			t.Errorf("%s: outcome %v: %v", name, issuer.OutcomeOf(err), err)
		}
	}
}

// Without a valid token of the pod, there is no call.
func TestReportWithoutToken(t *testing.T) {
	s, client := reporting(nil)
	for _, token := range []issuer.Token{{}, issuer.NewToken("a.web.c", time.Now().Add(-time.Hour))} {
		if err := s.Report(t.Context(), issuer.Applicant{Token: token}, issuer.Report{}); issuer.OutcomeOf(err) != issuer.NoPodToken || len(client.requests) > 0 {
			t.Errorf("%d calls: %v", len(client.requests), err)
		}
	}
}
