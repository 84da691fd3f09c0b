package ra

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"

	"github.com/flexstack/step-csi/issuer/backoff"
	"github.com/flexstack/step-csi/issuer/panics"
	"github.com/flexstack/step-csi/issuer/proxies"
	"github.com/flexstack/step-csi/issuer/trust"
)

const (
	// MaxRequest bounds requests, in bytes. The largest is a CSR with an RSA-4096 key
	// and a hundred DNS names of 253 bytes (27 KiB), subject fields (4 KiB), template data
	// (4 KiB), and the pod's token (16 KiB at most, 1.5 KiB in practice). A revocation has a chain with such a leaf (27 KiB) and its
	// intermediates (1 to 2 KiB each).
	MaxRequest = 56 << 10
	// maxResponse bounds responses, in bytes: a chain, and the roots of the CA and of
	// the CAs that it is federated with.
	maxResponse = 128 << 10
)

// serviceConfig spreads the calls over all replicas, and retries a call at another
// replica if one is unavailable. It stops retrying while most calls fail, because
// then the fault is not in one replica. A call for roots waits longer: a replica that has
// lost its way to the CA is unavailable for this call alone, and the connection to
// another one may not be established yet. A report is not retried: its failures must not
// use up the retries of other calls. See
// https://github.com/grpc/grpc-proto/blob/master/grpc/service_config/service_config.proto
const serviceConfig = `{
  "loadBalancingConfig": [{"round_robin": {}}],
  "methodConfig": [{
    "name": [{"service": "stepcsi.ra.v1.RegistrationAuthority"}],
    "retryPolicy": {
      "maxAttempts": 3, "initialBackoff": "0.02s", "maxBackoff": "0.2s", "backoffMultiplier": 3,
      "retryableStatusCodes": ["UNAVAILABLE"]
    }
  }, {
    "name": [{"service": "stepcsi.ra.v1.RegistrationAuthority", "method": "Roots"}],
    "retryPolicy": {
      "maxAttempts": 4, "initialBackoff": "0.1s", "maxBackoff": "2s", "backoffMultiplier": 4,
      "retryableStatusCodes": ["UNAVAILABLE"]
    }
  }, {
    "name": [{"service": "stepcsi.ra.v1.RegistrationAuthority", "method": "Report"}]
  }],
  "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.5}
}`

// maxReconnect is the longest wait before a replica is tried again, with its jitter.
const maxReconnect = 1800 * time.Millisecond

// idleTimeout closes unused connections: a node renews a few times a day, and there
// may be thousands of nodes.
const idleTimeout = 2 * time.Minute

// dial returns a connection that is opened by its first call. It goes through the proxy
// of the environment, if there is one: see package proxies. The proxy then resolves the
// name, and chooses the replica.
func (s *Signer) dial(lookup lookupHost) (*grpc.ClientConn, error) {
	secure := credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: s.url.Hostname(),
		// verify verifies the certificate, in the same handshake.
		InsecureSkipVerify: true,
		VerifyConnection:   s.verify,
	})
	proxied, err := proxies.Has(s.url)
	if err != nil {
		return nil, err
	}
	replicas := replicasBuilder{proxied, lookup}
	return grpc.NewClient(replicas.Scheme()+":///"+trust.HostPort(s.url),
		grpc.WithResolvers(replicas),
		grpc.WithTransportCredentials(secure),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithDisableServiceConfig(), // ignore the service config in DNS
		grpc.WithIdleTimeout(idleTimeout),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxResponse), grpc.MaxCallSendMsgSize(MaxRequest)),
		// Pings detect a dead replica while calls wait for its answer.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{
			MinConnectTimeout: 5 * time.Second,
			Backoff:           grpcbackoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxReconnect * 5 / 6},
		}))
}

// bearer is a token that is sent with a call, and over TLS only.
type bearer string

var _ credentials.PerRPCCredentials = bearer("")

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (bearer) RequireTransportSecurity() bool { return true }

const (
	// resolveInterval is the shortest time between two lookups. gRPC's own DNS resolver
	// waits for 30 s to two minutes: too long for pods that start while the replicas
	// are rescheduled.
	resolveInterval = time.Second
	// resolveTimeout bounds one lookup.
	resolveTimeout = 10 * time.Second
)

// replicasBuilder is a resolver.Builder: each address of a name is a replica of the
// registration authority. With a proxy, the name itself is the only address.
type replicasBuilder struct {
	proxied bool
	lookup  lookupHost
}

// lookupHost is that of net.Resolver.
type lookupHost func(ctx context.Context, host string) (addresses []string, err error)

// Scheme implements resolver.Builder.
func (replicasBuilder) Scheme() string { return "replicas" }

// Build implements resolver.Builder. The target is host:port.
func (b replicasBuilder) Build(target resolver.Target, connection resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	host, port, err := net.SplitHostPort(target.Endpoint())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &replicasResolver{
		host: host, port: port, proxied: b.proxied, lookup: b.lookup, connection: connection, cancel: cancel,
		requested: make(chan struct{}, 1), done: make(chan struct{}),
	}
	go r.watch(ctx)
	return r, nil
}

// replicasResolver is a resolver.Resolver for one name.
type replicasResolver struct {
	host, port string
	proxied    bool
	lookup     lookupHost
	connection resolver.ClientConn
	cancel     context.CancelFunc
	requested  chan struct{}
	done       chan struct{}
}

// ResolveNow implements resolver.Resolver. gRPC calls it when an address fails.
func (r *replicasResolver) ResolveNow(resolver.ResolveNowOptions) {
	select {
	case r.requested <- struct{}{}:
	default:
	}
}

// Close implements resolver.Resolver.
func (r *replicasResolver) Close() {
	r.cancel()
	<-r.done
}

// watch resolves the name until ctx ends: after a failure every resolveInterval, and
// otherwise when gRPC requests it.
func (r *replicasResolver) watch(ctx context.Context) {
	defer close(r.done)
	for {
		found := r.resolve(ctx)
		if !backoff.Sleep(ctx, resolveInterval) {
			return
		}
		if !found {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-r.requested:
		}
	}
}

// resolve gives the connection the addresses of the name, or the error.
func (r *replicasResolver) resolve(ctx context.Context) (found bool) {
	defer panics.Recover(ctx, "resolve the registration authority's name", nil)
	if r.proxied {
		return r.connection.UpdateState(resolver.State{Addresses: []resolver.Address{{Addr: net.JoinHostPort(r.host, r.port)}}}) == nil
	}
	limited, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	hosts, err := r.lookup(limited, r.host)
	if ctx.Err() != nil {
		return false
	}
	if err == nil && len(hosts) == 0 {
		err = fmt.Errorf("%s has no address", r.host)
	}
	if err != nil {
		r.connection.ReportError(err)
		return false
	}
	state := resolver.State{}
	for _, host := range hosts {
		state.Addresses = append(state.Addresses, resolver.Address{Addr: net.JoinHostPort(host, r.port)})
	}
	return r.connection.UpdateState(state) == nil
}
