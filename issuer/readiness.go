package issuer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer/backoff"
	"github.com/flexstack/step-csi/issuer/panics"
)

// Readiness knows which issuers of the process work. Each is judged by itself: one
// whose CA is down, or whose password is wrong, says nothing about the others. The
// zero value has no issuers. It is a prometheus.Collector.
type Readiness struct {
	mu      sync.Mutex
	issuers map[string]*condition
}

// condition is what a Readiness knows about one issuer.
type condition struct {
	connected bool   // at least once
	err       error  // of the last Connect
	roots     error  // of the last request for the roots
	known     bool   // whether holders can renew
	renewal   string // why holders can renew; empty if they cannot
	token     tokenCertificate
	lifetimes string // which configured lifetimes the CA refuses; empty if none
}

func (c *condition) trouble() error {
	if c.err != nil {
		return c.err
	}
	return c.roots
}

var errNoIssuer = errors.New("no issuer works")

// Expect adds an issuer.
func (r *Readiness) Expect(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.issuers == nil {
		r.issuers = map[string]*condition{}
	}
	r.issuers[name] = &condition{err: errors.New("not connected yet")}
}

// Err returns nil once at least one issuer was connected. It stays nil when CAs go
// down later: a restart of the process would not help.
func (r *Readiness) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.issuers {
		if c.connected {
			return nil
		}
	}
	return errNoIssuer
}

// Details has a line for each issuer that does not work, for each whose CA lets holders
// renew, for each whose configured lifetimes the CA refuses, and for each whose
// certificate for its CA is about to expire. It is empty if there is nothing to report.
func (r *Readiness) Details() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var lines strings.Builder
	for _, name := range slices.Sorted(maps.Keys(r.issuers)) {
		c := r.issuers[name]
		if err := c.trouble(); err != nil {
			fmt.Fprintf(&lines, "issuer %s: %s\n", name, oneLine(err.Error()))
		}
		for _, warning := range []string{c.renewal, c.lifetimes} {
			if warning != "" {
				fmt.Fprintf(&lines, "issuer %s: warning: %s\n", name, oneLine(warning))
			}
		}
		if warning := c.token.warning(time.Now()); warning != "" {
			fmt.Fprintf(&lines, "issuer %s: warning: %s\n", name, warning)
		}
	}
	return lines.String()
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// update changes what is known about an issuer.
func (r *Readiness) update(name string, change func(*condition)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.issuers[name]; c != nil {
		change(c)
	}
}

// ObserveRoots records the result of a request for the issuer's roots.
func (r *Readiness) ObserveRoots(name string, err error) {
	r.update(name, func(c *condition) { c.roots = err })
}

// Watch connects to the issuer before its first request, and retries until that
// succeeds, so that the log shows a wrong URL or password before a pod needs the
// issuer. If the issuer's signer is a HolderRenewal, Watch then checks it at the
// interval every, with a jitter of 10 %, until ctx ends.
func (r *Readiness) Watch(ctx context.Context, name string, i *Issuer, every time.Duration) {
	w := watch{Readiness: r, name: name, issuer: i, startup: NewStartup(), retry: backoff.Backoff{First: time.Second, Max: time.Minute}}
	ctx = klog.NewContext(ctx, klog.FromContext(ctx).WithValues("issuer", name))
	for {
		err := w.check(ctx)
		if ctx.Err() != nil {
			return
		}
		wait := w.record(ctx, err, every)
		if _, watched := i.signer.(HolderRenewal); !watched && w.connected {
			return // FollowRoots shows how it is from now on
		}
		if !backoff.Sleep(ctx, wait) {
			return
		}
	}
}

// watch is the state of Watch for one issuer.
type watch struct {
	*Readiness
	name      string
	issuer    *Issuer
	startup   *Startup
	retry     backoff.Backoff
	connected bool   // at least once
	failing   bool   // the last check failed
	warned    string // the last warning about HolderRenewal that was logged
	refused   string // the last warning about lifetimes that was logged
	expiring  bool   // the certificate that signs tokens is about to expire
}

// check reads the provisioner, if the signer has one, and connects.
func (w *watch) check(ctx context.Context) (err error) {
	defer panics.Recover(ctx, "check the issuer", &err)
	if h, ok := w.issuer.signer.(HolderRenewal); ok {
		allowed, err := h.HolderRenewal(ctx, 0)
		if err != nil {
			return err
		}
		w.warn(ctx, allowed)
	}
	err = w.issuer.Connect(ctx)
	if t, ok := w.issuer.signer.(TokenCertificate); ok {
		w.warnTokenCertificate(ctx, t)
	}
	if err != nil {
		return err
	}
	if c, ok := w.issuer.signer.(LifetimeClaims); ok {
		w.warnLifetimes(ctx, w.issuer.lifetimes.refusedBy(c.LifetimeClaims()))
	}
	return nil
}

// warnTokenCertificate records the validity of the certificate that signs tokens, and
// logs once that it is about to expire.
func (w *watch) warnTokenCertificate(ctx context.Context, t TokenCertificate) {
	var own tokenCertificate
	own.issued, own.expires = t.TokenCertificate()
	w.update(w.name, func(c *condition) { c.token = own })
	warning := own.warning(time.Now())
	if warning != "" && !w.expiring {
		klog.FromContext(ctx).Info("Warning: the certificate that signs tokens is about to expire", "reason", warning)
	}
	w.expiring = warning != ""
}

// warn records whether holders can renew, and logs it when it changes.
func (w *watch) warn(ctx context.Context, allowed string) {
	w.update(w.name, func(c *condition) { c.known, c.renewal = true, allowed })
	switch {
	case allowed == w.warned:
	case allowed == "":
		klog.FromContext(ctx).Info("The CA no longer renews certificates for their holders")
	default:
		klog.FromContext(ctx).Info("Warning: the CA renews certificates for their holders", "reason", allowed)
	}
	w.warned = allowed
}

// warnLifetimes records which configured lifetimes the CA refuses, and logs it when it
// changes.
func (w *watch) warnLifetimes(ctx context.Context, refused string) {
	w.update(w.name, func(c *condition) { c.lifetimes = refused })
	switch {
	case refused == w.refused:
	case refused == "":
		klog.FromContext(ctx).Info("The CA no longer refuses configured lifetimes")
	default:
		klog.FromContext(ctx).Info("Warning: the CA refuses configured lifetimes", "reason", refused)
	}
	w.refused = refused
}

// record records the result of a check, and returns when to check again. While an
// issuer was never connected, every failure is logged, except for those that are normal
// during the startup; later only the first one.
func (w *watch) record(ctx context.Context, err error, every time.Duration) time.Duration {
	w.update(w.name, func(c *condition) {
		c.err = err
		c.connected = c.connected || err == nil
	})
	logger := klog.FromContext(ctx)
	failing := w.failing
	if w.failing = err != nil; !w.failing {
		if failing || !w.connected {
			logger.Info("Issuer connected")
		}
		if !w.connected {
			w.connected = true
			w.retry.Max = max(every, w.retry.Max)
		}
		w.retry.Reset()
		return jittered(every)
	}
	wait := w.retry.Next()
	switch {
	case !w.connected && w.startup.Log(ctx, err):
	case !failing || !w.connected:
		logger.Error(err, "Cannot connect to the issuer", "retry", wait.Round(time.Millisecond).String())
	}
	return wait
}

var (
	readyDesc = prometheus.NewDesc("step_csi_issuer_ready",
		"1 if the issuer worked when it was last checked, otherwise 0: its CA or registration authority is unreachable or not trusted, or its provisioner cannot be used.",
		[]string{"issuer"}, nil)
	renewalDesc = prometheus.NewDesc("step_csi_issuer_renewal_allowed",
		"1 if the issuer's CA renews certificates for anyone who has them and the key, because the provisioner does not have the claim disableRenewal, otherwise 0. Only of processes that call the CA.",
		[]string{"issuer"}, nil)
)

// Describe implements prometheus.Collector.
func (r *Readiness) Describe(descriptions chan<- *prometheus.Desc) {
	descriptions <- readyDesc
	descriptions <- renewalDesc
	descriptions <- tokenCertificateExpiresDesc
	descriptions <- tokenCertificateIssuedDesc
}

// Collect implements prometheus.Collector.
func (r *Readiness) Collect(out chan<- prometheus.Metric) {
	r.mu.Lock()
	defer r.mu.Unlock()
	send := func(desc *prometheus.Desc, value bool, name string) {
		v := 0.0
		if value {
			v = 1
		}
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, name)
	}
	for name, c := range r.issuers {
		send(readyDesc, c.trouble() == nil, name)
		if c.known {
			send(renewalDesc, c.renewal != "", name)
		}
		c.token.collect(out, name)
	}
}
