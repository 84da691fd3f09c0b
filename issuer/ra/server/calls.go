package server

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/backoff"
	"github.com/flexstack/step-csi/issuer/chartvalue"
	"github.com/flexstack/step-csi/issuer/panics"
	"github.com/flexstack/step-csi/issuer/ra"
)

const (
	// maxCalls and maxCallsOfNode bound the accepted calls at a time, and so the memory
	// of their messages. Others wait before their message is read, in turn by node.
	maxCalls       = 512
	maxCallsOfNode = 64
	waitingCalls   = maxConnectionsOfNode * maxStreams
	// overLimit is how long a call over the limit of its node waits for its answer, so
	// that one connection's calls over the limit are at most maxStreams in this time.
	overLimit = time.Second
	// prefixLength is the length of what precedes a gRPC message. See
	// https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests
	prefixLength = 5
)

// call is what is known of a call before its message is read.
type call struct {
	begin  time.Time
	caller issuer.Pod
}

type callKey struct{}

func (c *call) context(ctx context.Context) context.Context {
	return context.WithValue(ctx, callKey{}, c)
}

// callOf returns the call, or nil if calls has not admitted it.
func callOf(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	return c
}

// calls is the http.Handler in front of gRPC's. It knows the caller by the headers of a
// call. Until then nothing of the message is read, except for what fits into the
// window of the connection.
type calls struct {
	callers    *callers
	nodes      *limiter
	inFlight   *slots
	rejections *rejections
	grpc       http.Handler
}

// ServeHTTP implements http.Handler.
func (c *calls) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	connection := connectionOf(r.Context())
	if connection.unready.Load() {
		// Only a client that does not verify the certificate gets here. It could have
		// sent its token to anyone.
		connection.end(closedUnready)
		return
	}
	this := &call{begin: time.Now()}
	ctx, cancel := context.WithTimeout(klog.NewContext(r.Context(), c.rejections.logger), callTimeout)
	defer cancel()
	message, release, reason, err := c.admit(ctx, w, r, connection, this)
	defer release()
	known := this.caller != (issuer.Pod{})
	// "Connection: close" means for HTTP/2: no new calls, and close after the last.
	if err != nil && !known && reason != rejectedUnavailable && connection.strike() || time.Now().After(connection.expires) {
		w.Header().Set("Connection", "close")
	}
	if err != nil {
		c.rejections.call(reason, connection.address, err)
		reject(w, err)
		return
	}
	r = r.WithContext(this.context(ctx))
	r.Body = io.NopCloser(bytes.NewReader(message))
	c.grpc.ServeHTTP(w, r)
}

// reject answers an error as gRPC does, for a fraction of the cost. See
// https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#responses
func reject(w http.ResponseWriter, err error) {
	s := status.Convert(ra.Status(code(err), err))
	h := w.Header()
	h.Set("Content-Type", "application/grpc")
	h.Set("Grpc-Status", strconv.Itoa(int(s.Code())))
	h.Set("Grpc-Message", strings.ReplaceAll(url.PathEscape(s.Message()), "%20", " "))
	if details, err := proto.Marshal(s.Proto()); err == nil {
		h.Set("Grpc-Status-Details-Bin", base64.RawStdEncoding.EncodeToString(details))
	}
}

// admit identifies the caller and reads the message of an accepted call. The caller of
// admit must call release in any case.
func (c *calls) admit(ctx context.Context, w http.ResponseWriter, r *http.Request, connection *connection, this *call) (message []byte, release func(), reason string, err error) {
	defer panics.Recover(ctx, "admit a call", &err)
	release = func() {}
	caller, reason, err := c.identify(ctx, r, connection)
	if err != nil {
		return nil, release, reason, err
	}
	this.caller = caller
	if !c.nodes.allow(caller.Node) {
		backoff.Sleep(ctx, overLimit)
		return nil, release, rejectedRate, fmt.Errorf("%w: %s; %s sets the limit", errTooManyOfNode, caller.Node, chartvalue.Beside("authority.limits.node"))
	}
	free, err := c.inFlight.acquire(ctx, caller.Node)
	if err == nil {
		release = free
	}
	switch {
	case errors.Is(err, errTooManyWait):
		return nil, release, rejectedRate, fmt.Errorf("%w: calls of %s that wait", errTooManyOfNode, caller.Node)
	case err != nil:
		return nil, release, rejectedUnavailable, issuer.Ended(ctx).Because(fmt.Errorf("wait for other calls: %w", err))
	}
	message, err = io.ReadAll(http.MaxBytesReader(w, r.Body, ra.MaxRequest+prefixLength))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		err = fmt.Errorf("%w: the message is larger than max %d bytes", errTooLarge, ra.MaxRequest)
	case err != nil:
		err = issuer.Ended(ctx).Because(fmt.Errorf("the message does not arrive: %w", err))
	}
	return message, release, rejectedMessage, err
}

// identify returns the node plugin that calls. It accepts the connection.
func (c *calls) identify(ctx context.Context, r *http.Request, connection *connection) (caller issuer.Pod, reason string, err error) {
	leave, err := connection.enter(ctx)
	defer leave()
	if err != nil {
		return caller, rejectedRate, fmt.Errorf("%w: calls before one is accepted: %w", errTooManyOfAddress, err)
	}
	if caller, reason, err = c.callers.identify(ctx, r.Header, connection.address); err == nil {
		connection.accept(caller.Node)
	}
	return caller, reason, err
}
