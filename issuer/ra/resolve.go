package ra

import (
	"context"
	"net"
	"time"

	"google.golang.org/grpc/resolver"

	"github.com/flexstack/step-csi/issuer/backoff"
	"github.com/flexstack/step-csi/issuer/panics"
)

const (
	// resolveInterval is the shortest time between two lookups. gRPC's own DNS resolver
	// waits for 30 s to two minutes: too long for pods that start while the replicas
	// are rescheduled.
	resolveInterval = time.Second
	// resolveTimeout bounds one lookup.
	resolveTimeout = 10 * time.Second
)

// scheme of the targets that the resolver is for.
const scheme = "replicas"

// replicasBuilder is a resolver.Builder: each address of a name is a replica of the
// registration authority.
type replicasBuilder struct{}

// Scheme implements resolver.Builder.
func (replicasBuilder) Scheme() string { return scheme }

// Build implements resolver.Builder. The target is host:port.
func (replicasBuilder) Build(target resolver.Target, connection resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	host, port, err := net.SplitHostPort(target.Endpoint())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &replicasResolver{
		host: host, port: port, connection: connection, cancel: cancel,
		requested: make(chan struct{}, 1), done: make(chan struct{}),
	}
	go r.watch(ctx)
	return r, nil
}

// replicasResolver is a resolver.Resolver for one name.
type replicasResolver struct {
	host, port string
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
	limited, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	hosts, err := net.DefaultResolver.LookupHost(limited, r.host)
	if ctx.Err() != nil {
		return false
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
