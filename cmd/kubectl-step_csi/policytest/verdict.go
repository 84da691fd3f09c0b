// Package policytest evaluates a policy for pods without a cluster and without a CA, by the code
// of the node plugin and of the registration authority.
package policytest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/issuer"
)

// Options say what to evaluate.
type Options struct {
	// Files have the values of the chart, or are one configuration file of "step-csi ra" or
	// "step-csi node". Without one, the chart's defaults decide.
	Files   []string
	Release Release
	// PodFile has the manifests with the requests. Without it, Attributes are the request.
	PodFile    string
	Attributes map[string]string
	// Pod takes precedence over the manifests where it is not empty. Its UID is needed.
	Pod issuer.Pod
}

// Verdict is what a policy says about the request of a volume.
type Verdict struct {
	Pod     issuer.Pod `json:"pod"`
	Volume  string     `json:"volume,omitempty"`
	Issuer  string     `json:"issuer,omitempty"`
	Request *Request   `json:"request,omitempty"`
	Rules   []Rule     `json:"rules,omitempty"`
	Allowed bool       `json:"allowed"`
	// Event is the reason in the pod's event of a denial.
	Event string `json:"event,omitempty"`
}

// Rule is what one rule says.
type Rule struct {
	// Rule is the key of a validation, or the name of a rule that no configuration changes.
	Rule       string `json:"rule"`
	Expression string `json:"expression,omitempty"`
	Allowed    bool   `json:"allowed"`
	Message    string `json:"message,omitempty"`
}

// subject is a pod with a volume.
type subject struct {
	pod        issuer.Pod
	volume     string // its name; empty if the flags describe the request
	attributes map[string]string
}

// Evaluate returns a verdict for each volume. It returns an error if a file is wrong. The file
// "-" is stdin.
func Evaluate(ctx context.Context, o Options, stdin io.Reader) ([]Verdict, error) {
	if o.PodFile == "-" && slices.Contains(o.Files, "-") {
		return nil, errors.New("only one of -f and --pod can be the standard input")
	}
	made, err := readInstallation(o.Files, o.Release, stdin)
	if err != nil {
		return nil, err
	}
	subjects := []subject{{attributes: o.Attributes}}
	if o.PodFile != "" {
		if subjects, err = readSubjects(o.PodFile, made.driverName, stdin); err != nil {
			return nil, fmt.Errorf("%s: %w", o.PodFile, err)
		}
	}
	var all []Verdict
	for _, s := range subjects {
		s.pod = issuer.Pod{
			Namespace:      cmp.Or(o.Pod.Namespace, s.pod.Namespace, "default"),
			Name:           cmp.Or(o.Pod.Name, s.pod.Name, "test-pod"),
			UID:            o.Pod.UID,
			ServiceAccount: cmp.Or(o.Pod.ServiceAccount, s.pod.ServiceAccount, "default"),
			Node:           cmp.Or(o.Pod.Node, s.pod.Node, "node"),
		}
		v, err := made.evaluate(ctx, s)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

// evaluate decides as the node plugin and the registration authority do. It returns an error
// if no cluster has such a pod.
func (i installation) evaluate(ctx context.Context, s subject) (Verdict, error) {
	pod, values, err := attributes.Identity(attributes.VolumeContext(s.pod, s.attributes), s.pod.Node)
	if err != nil {
		return Verdict{}, err
	}
	v := Verdict{Pod: pod, Volume: s.volume}
	a, err := attributes.Parse(attributes.Normalize(values), pod, "", i.attributes)
	if err == nil {
		err = a.CheckRenewBefore(i.attributes.Issuers[a.Issuer].Default)
	}
	if err != nil {
		v.Event = event(codes.InvalidArgument, "invalid volume: "+err.Error())
		return v, nil
	}
	v.Issuer, v.Allowed = a.Issuer, true
	if a.TrustOnly {
		return v, nil // the pod asks for no name
	}
	a.Request.Duration = cmp.Or(a.Request.Duration, i.attributes.Issuers[a.Issuer].WithoutClaims())
	v.Request = requestOf(a.Request)
	tested := i.issuers[a.Issuer]
	for result := range tested.policy.Results(ctx, pod, a.Request) {
		r := Rule{Rule: result.Rule, Expression: strings.TrimSpace(result.Expression), Allowed: result.Err == nil}
		if result.Expression != "" {
			r.Rule = strings.TrimSuffix(tested.origin, "validations") + result.Rule
		}
		if result.Err != nil {
			if ctx.Err() != nil {
				return Verdict{}, ctx.Err()
			}
			r.Message = strings.TrimPrefix(result.Err.Error(), issuer.Denied.Error()+": ")
			if v.Allowed {
				v.Event = event(issuer.OutcomeOf(result.Err).CSICode(), fmt.Sprintf("issuer %s: %s%v", a.Issuer, tested.at, result.Err))
			}
			v.Allowed = false
		}
		v.Rules = append(v.Rules, r)
	}
	return v, nil
}

// event is an error of the node plugin as the kubelet writes it into an event.
func event(code codes.Code, text string) string {
	return fmt.Sprintf("rpc error: code = %s desc = %s", code, text)
}
