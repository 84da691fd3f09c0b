package ra

import (
	"context"
	"net"
	"time"

	"google.golang.org/grpc/resolver"
)

const (
	// resolveAgain is how soon a name is resolved again that had no addresses, or
	// whose addresses did not answer. gRPC's own resolver waits half a minute for
	// that, and up to two: too long for pods that wait for their certificates while
	// the replicas move.
	resolveAgain = time.Second
	// resolveTimeout bounds one lookup.
	resolveTimeout = 10 * time.Second
)

// scheme of the targets that replicas resolves.
const scheme = "replicas"

// replicas is a resolver.Builder: all addresses of a name are replicas.
type replicas struct{}

// Scheme implements resolver.Builder.
func (replicas) Scheme() string { return scheme }

// Build implements resolver.Builder. The target is host:port.
func (replicas) Build(target resolver.Target, connection resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	host, port, err := net.SplitHostPort(target.Endpoint())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &resolution{host: host, port: port, connection: connection, cancel: cancel, again: make(chan struct{}, 1), done: make(chan struct{})}
	go r.watch(ctx)
	return r, nil
}

// resolution is one name that is being resolved.
type resolution struct {
	host, port string
	connection resolver.ClientConn
	cancel     context.CancelFunc
	again      chan struct{}
	done       chan struct{}
}

// ResolveNow implements resolver.Resolver: gRPC calls it when an address fails.
func (r *resolution) ResolveNow(resolver.ResolveNowOptions) {
	select {
	case r.again <- struct{}{}:
	default:
	}
}

// Close implements resolver.Resolver.
func (r *resolution) Close() {
	r.cancel()
	<-r.done
}

func (r *resolution) watch(ctx context.Context) {
	defer close(r.done)
	for {
		found := r.resolve(ctx)
		select {
		case <-ctx.Done():
			return
		case <-time.After(resolveAgain):
		}
		if !found {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-r.again:
		}
	}
}

// resolve tells the connection what the name resolves to, or why it does not.
func (r *resolution) resolve(ctx context.Context) (found bool) {
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
