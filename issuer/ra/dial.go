package ra

import (
	"context"
	"crypto/tls"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// MaxMessage bounds requests and responses, in bytes. A CSR with a hundred names and
// a token have 30 KiB.
const MaxMessage = 128 << 10

// serviceConfig spreads the calls over all replicas, and retries a call at another
// replica if one is unavailable. It stops retrying while most calls fail, because
// then the fault is not in one replica. See
// https://github.com/grpc/grpc-proto/blob/master/grpc/service_config/service_config.proto
const serviceConfig = `{
  "loadBalancingConfig": [{"round_robin": {}}],
  "methodConfig": [{
    "name": [{"service": "stepcsi.ra.v1.RegistrationAuthority"}],
    "retryPolicy": {
      "maxAttempts": 3, "initialBackoff": "0.02s", "maxBackoff": "0.2s", "backoffMultiplier": 3,
      "retryableStatusCodes": ["UNAVAILABLE"]
    }
  }],
  "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.5}
}`

// idleTimeout closes unused connections: a node renews a few times a day, and there
// may be thousands of nodes.
const idleTimeout = 2 * time.Minute

// dial returns a connection that is opened by its first call.
func (s *Signer) dial() (*grpc.ClientConn, error) {
	port := s.url.Port()
	if port == "" {
		port = "443"
	}
	secure := credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: s.url.Hostname(),
		// verify verifies the certificate, in the same handshake.
		InsecureSkipVerify: true,
		VerifyConnection:   s.verify,
	})
	return grpc.NewClient(scheme+":///"+net.JoinHostPort(s.url.Hostname(), port),
		grpc.WithResolvers(replicasBuilder{}),
		grpc.WithTransportCredentials(secure),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithDisableServiceConfig(), // ignore the service config in DNS
		grpc.WithNoProxy(),
		grpc.WithIdleTimeout(idleTimeout),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage)),
		// Pings detect a dead replica while calls wait for its answer.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{
			MinConnectTimeout: 5 * time.Second,
			Backoff:           backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
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
