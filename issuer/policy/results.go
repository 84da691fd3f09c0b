package policy

import (
	"context"
	"fmt"
	"iter"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
)

// Result is what one rule says about a request.
type Result struct {
	// Rule names a rule that no configuration changes, or a validation, such as
	// "validations[0]".
	Rule string
	// Expression is that of a validation; empty for any other rule.
	Expression string
	// Err is nil if the rule allows the request. Otherwise, it is as Check returns it.
	Err error
}

// Results returns what each rule says about the request, in the order in which Check asks
// them. It evaluates a rule only when its result is due.
func (p *Policy) Results(ctx context.Context, pod issuer.Pod, req issuer.Request) iter.Seq[Result] {
	return func(yield func(Result) bool) {
		for _, fixed := range []struct {
			rule  string
			check func() error
		}{
			{"identity of the pod", func() error { return checkPod(pod) }},
			{"number of names", func() error { return names.CheckTotal(req.AlternativeNames()) }},
			{"reserved names", func() error { return p.reserved.check(req) }},
			{"subject fields and template data", func() error { return p.subject.check(req) }},
		} {
			result := Result{Rule: fixed.rule}
			if err := fixed.check(); err != nil {
				result.Err = fmt.Errorf("%w: %w", issuer.Denied, err)
			}
			if !yield(result) {
				return
			}
		}
		vars := p.variables(pod, req)
		for _, v := range p.validations {
			if !yield(Result{v.name, v.text, v.check(ctx, vars)}) {
				return
			}
		}
	}
}
