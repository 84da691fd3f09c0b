package policy

import (
	"context"
	"fmt"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common"
	"cel.dev/cel-go/common/types"

	"github.com/flexstack/step-csi/issuer"
)

// costLimit limits one evaluation of one expression, in the units of CEL. It is
// Kubernetes' limit for an expression of a ValidatingAdmissionPolicy, and takes up
// to a tenth of a second.
const costLimit = 1_000_000

// interruptEvery is how many steps of a loop CEL runs between checks of the context.
const interruptEvery = 100

// Validation is one rule of a policy, in the form of a validation of
// ValidatingAdmissionPolicy.
type Validation struct {
	// Expression is CEL that returns true if the rule allows the request.
	Expression string `json:"expression"`
	// Message is the reason for a denial. It defaults to the expression.
	Message string `json:"message,omitempty"`
	// MessageExpression is CEL that returns the message. If it fails, or returns a
	// blank text or several lines, Message is used.
	MessageExpression string `json:"messageExpression,omitempty"`
}

// same tells whether both validations differ in nothing but white space.
func (v Validation) same(other Validation) bool {
	tidy := func(cel string) string { return strings.Join(strings.Fields(cel), " ") }
	return tidy(v.Expression) == tidy(other.Expression) && v.Message == other.Message && tidy(v.MessageExpression) == tidy(other.MessageExpression)
}

// Unrestricted returns the fields of requests with names that no validation mentions: any pod
// can have any value of them. The default list mentions all.
func Unrestricted(validations []Validation) (fields []string) {
	env, err := newEnvironment()
	if err != nil || len(validations) == 0 {
		return nil // New returns the error
	}
	for _, field := range []string{"commonName", "dnsNames", "ipAddresses", "uris", "emailAddresses"} {
		if !mentioned(env, validations, field) {
			fields = append(fields, "request."+field)
		}
	}
	return fields
}

// validation is a compiled Validation.
type validation struct {
	name string
	// text is the expression as configured.
	text string
	// decision says who decides, after the message of a denial.
	decision   string
	expression cel.Program
	message    string
	// messageExpression is nil if there is none.
	messageExpression cel.Program
}

func (v Validation) compile(env *cel.Env, name string) (compiled validation, err error) {
	compiled = validation{name: name, text: v.Expression, message: v.Message}
	if v.Message == "" {
		compiled.message = "failed expression: " + strings.TrimSpace(v.Expression)
	}
	compiled.expression, err = compile(env, name+".expression", v.Expression, cel.BoolType)
	if err != nil || v.MessageExpression == "" {
		return compiled, err
	}
	compiled.messageExpression, err = compile(env, name+".messageExpression", v.MessageExpression, cel.StringType)
	return compiled, err
}

// compile rejects an expression of another type than result, and one that could
// exceed the cost limit for the largest request.
func compile(env *cel.Env, name, expression string, result *cel.Type) (cel.Program, error) {
	if strings.TrimSpace(expression) == "" {
		return nil, fmt.Errorf("%s: must not be empty", name)
	}
	ast, issues := env.CompileSource(common.NewStringSource(expression, name))
	if err := issues.Err(); err != nil {
		return nil, err
	}
	if !ast.OutputType().IsExactType(result) {
		return nil, fmt.Errorf("%s: returns %s, but must return %s: %s", name, ast.OutputType(), result, expression)
	}
	cost, err := env.EstimateCost(ast, sizes{})
	if err != nil {
		return nil, fmt.Errorf("%s: estimate the cost: %w", name, err)
	}
	if cost.Max > costLimit {
		return nil, fmt.Errorf("%s: may cost up to %d, but the limit is %d (loops in loops?): %s", name, cost.Max, costLimit, expression)
	}
	return newProgram(env, ast, costLimit)
}

func newProgram(env *cel.Env, ast *cel.Ast, limit uint64) (cel.Program, error) {
	return env.Program(ast,
		cel.EvalOptions(cel.OptOptimize),
		cel.CostLimit(limit),
		cel.InterruptCheckFrequency(interruptEvery))
}

func (v validation) check(ctx context.Context, vars map[string]any) error {
	result, _, err := v.expression.ContextEval(ctx, vars)
	switch {
	case ctx.Err() != nil:
		return issuer.Ended(ctx).Because(fmt.Errorf("the policy's %s is not evaluated in time: %w", v.name, ctx.Err()))
	case err != nil:
		return fmt.Errorf("%w: %s cannot be evaluated for this request: %w%s", issuer.Denied, v.name, err, v.decision)
	case result != types.True:
		return fmt.Errorf("%w: %s%s", issuer.Denied, v.explain(ctx, vars), v.decision)
	}
	return nil
}

// explain returns the message of a denial. It falls back to the plain message in
// the same cases as ValidatingAdmissionPolicy.
func (v validation) explain(ctx context.Context, vars map[string]any) string {
	if v.messageExpression == nil {
		return v.message
	}
	result, _, err := v.messageExpression.ContextEval(ctx, vars)
	if err != nil {
		return v.message
	}
	message, ok := result.Value().(string)
	message = strings.TrimSpace(message)
	if !ok || message == "" || strings.ContainsAny(message, "\r\n") {
		return v.message
	}
	return message
}
