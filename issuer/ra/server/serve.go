package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/panics"
	"github.com/flexstack/step-csi/issuer/ra"
	"github.com/flexstack/step-csi/issuer/ra/rapb"
)

const (
	// callTimeout bounds a call from its headers on.
	callTimeout = 20 * time.Second
	// handlerTimeout is shorter: node plugins wait for callTimeout, and get the error
	// that names the CA or the API server before they give up.
	handlerTimeout = callTimeout - 3*time.Second
	// messageTimeout bounds the time from the headers of a call to the end of its
	// message.
	messageTimeout = 15 * time.Second
	// handshakeTimeout bounds the TLS handshake.
	handshakeTimeout = 5 * time.Second
	// idleTimeout closes connections without calls. Node plugins close theirs earlier.
	idleTimeout = 5 * time.Minute
	// stopTimeout is how long calls in flight may take after the server is stopped.
	stopTimeout = callTimeout + 5*time.Second
	maxStreams  = 32               // calls at a time of a connection
	maxHeaders  = maxToken + 4<<10 // bytes of a call's headers
	window      = 64 << 10         // bytes that a connection may send ahead: the least that HTTP/2 allows
)

// serve serves gRPC through net/http, whose HTTP/2 bounds what a connection can hold
// in memory: gRPC's own keeps up to a window for each of a connection's calls, and a
// hundred times as much if the data arrives in frames of one byte. It also shows the
// headers of a call, and the caller's token in them, before the message is read.
func (s *Server) serve(ctx context.Context, listener net.Listener) error {
	g := grpc.NewServer(
		grpc.MaxRecvMsgSize(ra.MaxRequest),
		grpc.UnaryInterceptor(intercept(klog.FromContext(ctx))),
	)
	rapb.RegisterRegistrationAuthorityServer(g, s)
	defer g.Stop()
	rejected := newRejections(klog.FromContext(ctx), s.metrics.rejected)
	connections := newConnections(listener, s.metrics.closed)
	s.metrics.connections.Store(connections)
	web := &http.Server{
		Handler: &calls{
			callers: s.callers, nodes: s.nodes, inFlight: newSlots(maxCalls, maxCallsOfNode, waitingCalls),
			rejections: rejected, grpc: g,
		},
		// A resumed session would have no certificate, and would not show whether the
		// first one was valid.
		TLSConfig:         &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: s.serving.certificate, SessionTicketsDisabled: true},
		ReadHeaderTimeout: handshakeTimeout,
		ReadTimeout:       messageTimeout,
		WriteTimeout:      stopTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaders,
		ErrorLog:          log.New(handshakeLog{rejected, s.serving}, "", 0),
		ConnContext:       withConnection,
		Protocols:         &http.Protocols{},
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams, MaxReceiveBufferPerConnection: window, MaxReceiveBufferPerStream: window,
			MaxReadFrameSize: 16 << 10, // the least that HTTP/2 allows
			SendPingTimeout:  time.Minute, PingTimeout: 10 * time.Second, WriteByteTimeout: 10 * time.Second,
		},
	}
	web.Protocols.SetHTTP2(true)
	failed := make(chan error, 1)
	go func() { failed <- web.ServeTLS(connections, "", "") }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if web.Shutdown(limit) != nil {
		web.Close()
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// intercept gives each call a logger and a deadline, and each error its code.
func intercept(logger klog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		this := callOf(ctx)
		if this == nil {
			return nil, status.Error(codes.Internal, "the caller is not known")
		}
		limited, cancel := context.WithDeadline(klog.NewContext(ctx, logger), this.begin.Add(handlerTimeout))
		defer cancel()
		response, err := recovering(limited, req, info, handle)
		// gRPC suppresses the Date of net/http, by which node plugins compare the clocks.
		_ = grpc.SetHeader(ctx, metadata.Pairs("date", time.Now().UTC().Format(http.TimeFormat)))
		if err == nil {
			return response, nil
		}
		if time.Since(this.begin) > handlerTimeout/2 {
			// No retry at another replica: less time is left than this one had, and the
			// caller would not get this error. See
			// https://github.com/grpc/proposal/blob/master/A6-client-retries.md#pushback
			_ = grpc.SetTrailer(ctx, metadata.Pairs("grpc-retry-pushback-ms", "-1"))
		}
		return nil, ra.Status(code(err), err)
	}
}

func recovering(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (response any, err error) {
	defer panics.Recover(ctx, info.FullMethod, &err)
	return handle(ctx, req)
}

// Errors with a gRPC code of their own.
var (
	errMalformed        = fmt.Errorf("%w: malformed request", issuer.Denied)
	errTooLarge         = fmt.Errorf("%w: the request is too large", issuer.Denied)
	errUnknownIssuer    = issuer.Unavailable.Because(errors.New("its configuration has no such issuer"))
	errNotPlugin        = fmt.Errorf("%w: only node plugins may call", issuer.CallerRejected)
	errTooManyOfNode    = issuer.Unavailable.Because(errors.New("rate limit of the node exceeded"))
	errTooManyOfAddress = issuer.Unavailable.Because(errors.New("rate limit of the address exceeded"))
	errManyRejections   = fmt.Errorf("%w: many of its tokens were rejected", errTooManyOfAddress)
)

// code is the gRPC code of an error; rapb/ra.proto describes the codes.
func code(err error) codes.Code {
	switch {
	case errors.Is(err, errMalformed):
		return codes.InvalidArgument
	case errors.Is(err, errUnknownIssuer):
		return codes.NotFound
	case errors.Is(err, errNotPlugin):
		return codes.PermissionDenied
	case errors.Is(err, errTooManyOfNode), errors.Is(err, errTooManyOfAddress), errors.Is(err, errTooLarge):
		return codes.ResourceExhausted
	}
	return issuer.OutcomeOf(err).RACode()
}
