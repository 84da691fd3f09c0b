// Package panics turns a panic into an error of the one call, volume or issuer
// whose code panicked, so that the others keep working.
//
// It cannot recover what the Go runtime calls a fatal error, such as concurrent
// writes to a map.
package panics

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync/atomic"

	"k8s.io/klog/v2"
)

// total belongs to the package because a panic belongs to the process: any
// goroutine can panic, and a counter as a parameter of each would be in the way of
// all signatures from main to the code that recovers.
var total atomic.Uint64

// Total returns the number of panics that were recovered since the process started.
func Total() uint64 { return total.Load() }

// Recover recovers a panic of the function that defers it:
//
//	defer panics.Recover(ctx, "sign", &err)
//
// what names the work that panicked. Recover logs the stack with the logger of ctx,
// counts the panic, and sets err if that is not nil. The error does not contain the
// panic's value, because remote callers get to see it.
func Recover(ctx context.Context, what string, err *error) {
	value := recover()
	if value == nil {
		return
	}
	total.Add(1)
	klog.FromContext(ctx).Error(fmt.Errorf("%v", value), "Panic recovered", "in", what, "stack", string(debug.Stack()))
	if err != nil {
		*err = fmt.Errorf("%s: panic; this is a defect of step-csi, please report it with the stack in the log", what)
	}
}
