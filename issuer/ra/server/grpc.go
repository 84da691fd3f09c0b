package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
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
	"github.com/flexstack/step-csi/issuer/ra"
	"github.com/flexstack/step-csi/issuer/ra/rapb"
)

const (
	// callTimeout bounds a call, from its first byte on: whoever sends slowly is
	// cut off, too.
	callTimeout = 20 * time.Second
	// answerTimeout leaves the caller, who waits for as long, time to be told what did
	// not answer.
	answerTimeout = callTimeout - 3*time.Second
	// handshakeTimeout bounds what comes before.
	handshakeTimeout = 5 * time.Second
	// stopTimeout is how long calls in flight may take when the authority stops.
	stopTimeout = callTimeout + 5*time.Second
	// maxConnections bounds the memory that connections take. Nodes close theirs
	// when they do not use them.
	maxConnections = 8192
	maxStreams     = 128 // per connection
	maxHeaders     = 16 << 10
	// workers are the goroutines that keep the stacks which calls have grown.
	workers = 16
	// connectionAge makes nodes connect anew, and so to new replicas, too.
	connectionAge = 10 * time.Minute
)

// perPeer is for a caller that is not known yet, by its address: each of its
// calls costs a question to the API server.
var perPeer = Limit{Rate: 200, Burst: 1000}

func (s *Server) serve(ctx context.Context, listener net.Listener) error {
	peers := newLimiter(perPeer)
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
		grpc.InTapHandle(func(ctx context.Context, _ *tap.Info) (context.Context, error) { return admit(ctx, peers) }),
		grpc.UnaryInterceptor(s.intercept(klog.FromContext(ctx))),
		grpc.WaitForHandlers(true),
		grpc.NumStreamWorkers(workers),
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

// admit sees a call before its message is read.
func admit(ctx context.Context, peers *limiter) (context.Context, error) {
	if p, ok := peer.FromContext(ctx); ok {
		host, _, err := net.SplitHostPort(p.Addr.String())
		if err != nil || !peers.allow(host) {
			return nil, status.Error(codes.ResourceExhausted, "too many calls from this address")
		}
	}
	limited, cancel := context.WithTimeout(ctx, callTimeout)
	context.AfterFunc(limited, cancel)
	return limited, nil
}

// intercept gives each call a logger, and each error its code.
func (s *Server) intercept(logger klog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		begin := time.Now()
		limited, cancel := context.WithTimeout(klog.NewContext(ctx, logger), answerTimeout)
		defer cancel()
		answer, err := recovered(limited, req, handle)
		if err == nil {
			return answer, nil
		}
		if time.Since(begin) > answerTimeout/2 {
			// Another replica would have less time than this one had, and the caller would
			// not be told why. See https://github.com/grpc/proposal/blob/master/A6-client-retries.md#pushback
			_ = grpc.SetTrailer(ctx, metadata.Pairs("grpc-retry-pushback-ms", "-1"))
		}
		return nil, ra.Status(code(err), err)
	}
}

// recovered turns a panic into an error of the one call.
func recovered(ctx context.Context, req any, handle grpc.UnaryHandler) (answer any, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = errors.New("a defect of step-csi, please report it with the log of the authority")
			klog.FromContext(ctx).Error(fmt.Errorf("%v", r), "Panic", "stack", string(debug.Stack()))
		}
	}()
	return handle(ctx, req)
}

// Errors with a gRPC code of their own.
var (
	errMalformed     = fmt.Errorf("%w: malformed request", issuer.Denied)
	errUnknownIssuer = fmt.Errorf("%w: the registration authority has no such issuer", issuer.Unavailable)
	errNotPlugin     = fmt.Errorf("%w: only node plugins may call", issuer.CallerRejected)
	errTooManyOfNode = fmt.Errorf("%w: rate limit of the node exceeded", issuer.Unavailable)
)

// code is the gRPC code of an error; rapb/ra.proto says what each means.
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
