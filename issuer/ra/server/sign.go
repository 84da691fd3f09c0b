package server

import (
	"context"
	"fmt"
	"math"
	"time"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/chartvalue"
	"github.com/flexstack/step-csi/issuer/ra"
	"github.com/flexstack/step-csi/issuer/ra/rapb"
)

// Sign implements rapb.RegistrationAuthorityServer.
func (s *Server) Sign(ctx context.Context, req *rapb.SignRequest) (*rapb.SignResponse, error) {
	begin := time.Now()
	entry := &auditEntry{"issuer", clip(req.GetIssuer(), maxLoggedName)}
	credential, err := s.sign(ctx, req, entry)
	took := time.Since(begin)
	label := s.issuerLabel(req.GetIssuer())
	s.metrics.requests.WithLabelValues(label, code(err).String()).Inc()
	s.metrics.duration.WithLabelValues(label).Observe(took.Seconds())
	entry.add("took", took.String())
	if err != nil {
		entry.logError(ctx, err, "Request denied", "Request failed")
		return nil, err
	}
	leaf := credential.Leaf()
	entry.add("serial", leaf.SerialNumber.String(), "notAfter", leaf.NotAfter.UTC().Format(time.RFC3339))
	klog.FromContext(ctx).Info("Certificate signed", *entry...)
	return &rapb.SignResponse{
		Chain: ra.Raw(credential.Chain), Roots: ra.Raw(credential.Roots.Own), FederatedRoots: ra.Raw(credential.Roots.Federated),
		RootsAgeMilliseconds: ageMilliseconds(credential.Roots), SubjectRead: true,
	}, nil
}

// sign has the CA sign for the pod that the token identifies. Until it knows the pod, it
// reads only the pod's token of the request.
func (s *Server) sign(ctx context.Context, req *rapb.SignRequest, entry *auditEntry) (*issuer.Credential, error) {
	caller := callOf(ctx).caller
	entry.addCaller(caller)
	pod, err := s.runningPod(ctx, caller, req.GetPodToken(), entry)
	if err != nil {
		return nil, err
	}
	claimed := issuer.Pod{
		Namespace: req.GetPod().GetNamespace(), Name: req.GetPod().GetName(), UID: req.GetPod().GetUid(),
		ServiceAccount: req.GetPod().GetServiceAccount(), Node: req.GetPod().GetNode(),
	}
	i, known := s.issuers[req.GetIssuer()]
	switch {
	case claimed != pod:
		return nil, fmt.Errorf("%w: the token is not that of the pod: the caller says %s, the token %s", issuer.Denied, describe(claimed), describe(pod))
	case !s.pods.allow(pod.UID):
		return nil, fmt.Errorf("%w: %s/%s; %s sets the limit", issuer.Throttled, pod.Namespace, pod.Name, chartvalue.Beside("authority.limits.pod"))
	case !known:
		return nil, fmt.Errorf("%w: %q", errUnknownIssuer, clip(req.GetIssuer(), maxLoggedName))
	}
	duration, err := i.duration(req)
	if err != nil {
		return nil, err
	}
	csr, wanted, err := issuer.ReadCSR(req.GetCsr(), duration)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errMalformed, err)
	}
	if err := ra.ReadSubject(req, &wanted); err != nil {
		return nil, fmt.Errorf("%w: %w", errMalformed, err)
	}
	entry.addRequest(wanted)
	prepared, err := i.PrepareCSR(ctx, issuer.SigningRequest{Applicant: issuer.Applicant{Pod: pod}, Request: wanted, CSR: csr})
	if err != nil {
		return nil, err
	}
	return i.Sign(klog.NewContext(ctx, klog.FromContext(ctx).WithValues("issuer", req.GetIssuer())), prepared)
}

// duration checks a requested lifetime against the configured ones. It is zero if none was
// requested.
func (i Issuer) duration(req *rapb.SignRequest) (time.Duration, error) {
	limits, seconds := i.Lifetimes(), req.GetDurationSeconds()
	const most = int64(math.MaxInt64 / time.Second) // a larger number overflows a time.Duration
	switch {
	case req.GetDefaultLifetime():
		return 0, nil
	case seconds <= 0 || seconds < int64(limits.Min/time.Second):
		return 0, fmt.Errorf("%w: a duration of %d s is shorter than %s, the duration.min of the issuer in the configuration of the registration authority",
			issuer.Denied, seconds, limits.Min)
	case limits.Max > 0 && seconds > int64(limits.Max/time.Second):
		return 0, fmt.Errorf("%w: a duration of %d s is longer than %s, the duration.max of the issuer in the configuration of the registration authority",
			issuer.Denied, seconds, limits.Max)
	case seconds > most:
		return 0, fmt.Errorf("%w: a duration of %d s is longer than any certificate lives", issuer.Denied, seconds)
	}
	return time.Duration(seconds) * time.Second, nil
}

func describe(p issuer.Pod) string {
	return fmt.Sprintf("%q %q of service account %q on node %q", p.Namespace+"/"+p.Name, p.UID, p.ServiceAccount, p.Node)
}
