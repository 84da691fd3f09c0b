package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/panics"
	"github.com/flexstack/step-csi/issuer/ra"
	"github.com/flexstack/step-csi/issuer/ra/rapb"
)

const (
	// callTimeout bounds a call from its first byte on, so that it also ends the calls
	// of slow senders.
	callTimeout = 20 * time.Second
	// handlerTimeout is shorter: node plugins wait for callTimeout, and get the error
	// that names the CA or the API server before they give up.
	handlerTimeout = callTimeout - 3*time.Second
	// handshakeTimeout bounds the TLS handshake.
	handshakeTimeout = 5 * time.Second
	// stopTimeout is how long calls in flight may take after the server is stopped.
	stopTimeout = callTimeout + 5*time.Second
	// maxConnections bounds the memory of connections. Node plugins close idle ones.
	maxConnections = 8192
	maxStreams     = 128      // per connection
	maxHeaders     = 16 << 10 // bytes
	// connectionAge makes node plugins reconnect, so that they also find new replicas.
	connectionAge = 10 * time.Minute
)

// perAddress limits callers before they are known: the review of a caller's token
// is a call to the API server.
var perAddress = Limit{Rate: 200, Burst: 1000}

func (s *Server) serve(ctx context.Context, listener net.Listener) error {
	addresses := newLimiter(perAddress)
	g := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: s.serving.certificate})),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.MaxRecvMsgSize(ra.MaxMessage),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionIdle: 5 * time.Minute, MaxConnectionAge: connectionAge, MaxConnectionAgeGrace: stopTimeout,
			Time: time.Minute, Timeout: 10 * time.Second,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second}),
		grpc.InTapHandle(func(ctx context.Context, _ *tap.Info) (context.Context, error) { return admit(ctx, addresses) }),
		grpc.UnaryInterceptor(intercept(klog.FromContext(ctx))),
		grpc.WaitForHandlers(true),
	)
	rapb.RegisterRegistrationAuthorityServer(g, s)
	failed := make(chan error, 1)
	go func() { failed <- g.Serve(netutil.LimitListener(listener, maxConnections)) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	timer := time.AfterFunc(stopTimeout, g.Stop)
	defer timer.Stop()
	g.GracefulStop()
	if err := <-failed; !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

// admit limits the calls of an address, and bounds the time of a call, before its
// message is read.
func admit(ctx context.Context, addresses *limiter) (_ context.Context, err error) {
	defer panics.Recover(ctx, "admit a call", &err)
	if p, ok := peer.FromContext(ctx); ok {
		host, _, err := net.SplitHostPort(p.Addr.String())
		if err != nil || !addresses.allow(host) {
			return nil, status.Error(codes.ResourceExhausted, "rate limit of this address exceeded")
		}
	}
	limited, cancel := context.WithTimeout(ctx, callTimeout)
	context.AfterFunc(limited, cancel)
	return limited, nil
}

// intercept gives each call a logger and a deadline, and each error its code.
func intercept(logger klog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		begin := time.Now()
		limited, cancel := context.WithTimeout(klog.NewContext(ctx, logger), handlerTimeout)
		defer cancel()
		response, err := recovering(limited, req, info, handle)
		if err == nil {
			return response, nil
		}
		if time.Since(begin) > handlerTimeout/2 {
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
	errMalformed     = fmt.Errorf("%w: malformed request", issuer.Denied)
	errUnknownIssuer = fmt.Errorf("%w: the registration authority has no such issuer", issuer.Unavailable)
	errNotPlugin     = fmt.Errorf("%w: only node plugins may call", issuer.CallerRejected)
	errTooManyOfNode = fmt.Errorf("%w: rate limit of the node exceeded", issuer.Unavailable)
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
	case errors.Is(err, errTooManyOfNode):
		return codes.ResourceExhausted
	}
	return issuer.OutcomeOf(err).RACode()
}
