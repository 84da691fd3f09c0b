package server

import (
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"k8s.io/klog/v2"
)

// Why calls are rejected before they are read: values of the label "reason".
const (
	rejectedToken       = "token"       // no JSON Web Token
	rejectedClaims      = "claims"      // the token says that it is not a node plugin's
	rejectedReview      = "review"      // the API server does not accept the token
	rejectedUnavailable = "unavailable" // the API server does not answer
	rejectedRate        = "rate"        // too many calls or rejected tokens
	rejectedMessage     = "message"     // the message is too long, or does not arrive
)

const (
	// maxLogged bounds what is logged of a text of a caller, in bytes.
	maxLogged = 512
	// maxLoggedError bounds what is logged of the error of an accepted call, in bytes.
	maxLoggedError = 2 << 10
	// maxLoggedName bounds a name in a request, in bytes: a DNS name has at most 253.
	maxLoggedName = 253
)

// loggedRejections bounds the lines about callers that are nobody: they must not push
// the audit log out of what the kubelet keeps.
var loggedRejections = Limit{Rate: 1, Burst: 20}

// rejections counts rejected calls and connections, and logs some of them.
type rejections struct {
	logger     klog.Logger
	calls      *prometheus.CounterVec
	logged     *rate.Limiter
	suppressed atomic.Int64
}

func newRejections(logger klog.Logger, calls *prometheus.CounterVec) *rejections {
	return &rejections{logger: logger, calls: calls, logged: rate.NewLimiter(rate.Limit(loggedRejections.Rate), loggedRejections.Burst)}
}

// call counts a rejected call from the address.
func (r *rejections) call(reason string, address netip.Prefix, err error) {
	r.calls.WithLabelValues(reason).Inc()
	r.log("Call rejected", "reason", reason, "address", address.String(), "err", clip(err.Error(), maxLogged))
}

// Write implements io.Writer for http.Server.ErrorLog. Its lines are about connections,
// such as failed handshakes, and may contain text of the client.
func (r *rejections) Write(line []byte) (int, error) {
	r.log("Connection failed", "err", clip(strings.TrimSpace(string(line[:min(len(line), 2*maxLogged)])), maxLogged))
	return len(line), nil
}

// log logs, unless there are too many lines.
func (r *rejections) log(message string, keysAndValues ...any) {
	if !r.logged.AllowN(time.Now(), 1) {
		r.suppressed.Add(1)
		return
	}
	r.logger.Info(message, append(keysAndValues, "suppressed", r.suppressed.Swap(0))...)
}

// clip shortens a text for the log.
func clip(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}
