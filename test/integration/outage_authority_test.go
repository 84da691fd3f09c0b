package integration

import (
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/flexstack/step-csi/test/node"
	"github.com/flexstack/step-csi/test/proxy"
)

// distantAuthority is a registration authority with one replica. Proxies that inject
// faults are between the plugin and the authority, and between the authority, the CA
// and the API server.
type distantAuthority struct {
	*authorities
	front, toCA, toAPI *proxy.Proxy
}

func startDistantAuthority(t *testing.T) *distantAuthority {
	t.Helper()
	r := &distantAuthority{authorities: newAuthorities(t, startCA(t))}
	api, err := url.Parse(r.reviews.URL())
	node.Must(t, err)
	r.toAPI = startProxy(t, net.JoinHostPort("127.0.0.1", api.Port()))
	r.api = onLocalhost(t, r.toAPI)
	r.toCA = startProxy(t, strings.TrimPrefix(r.ca.URL(), "https://"))
	r.caURL = "https://" + r.toCA.Address()
	r.startReplicas(1, "")
	r.front = startProxy(t, net.JoinHostPort("127.0.0.1", r.port))
	return r
}

// onLocalhost returns the URL of the proxy with the name localhost, for which the
// authority and the API server have certificates.
func onLocalhost(t testing.TB, p *proxy.Proxy) string {
	t.Helper()
	_, port, err := net.SplitHostPort(p.Address())
	node.Must(t, err)
	return "https://" + net.JoinHostPort("localhost", port)
}

// newNode starts a node whose plugin reaches the authority through the proxy.
func (r *distantAuthority) newNode() *node.Node {
	r.t.Helper()
	n := r.prepareNode()
	n.ChangeConfig(r.url(), onLocalhost(r.t, r.front))
	n.Start()
	return n
}

// The registration authority, the CA or the API server is unreachable. The volume's
// health names the part that failed, and the plugin recovers after the outage.
func TestOutagesRA(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]struct {
		begin, end func(*testing.T, *distantAuthority)
		says       []string
	}{
		"authority refuses": {
			begin: func(t *testing.T, r *distantAuthority) { node.Must(t, r.front.Set(proxy.Refuse)) },
			end:   func(t *testing.T, r *distantAuthority) { node.Must(t, r.front.Set(proxy.None)) },
			says:  []string{"https://localhost:", "connection refused"},
		},
		"authority silent": {
			begin: func(t *testing.T, r *distantAuthority) { node.Must(t, r.front.Set(proxy.Blackhole)) },
			end:   func(t *testing.T, r *distantAuthority) { node.Must(t, r.front.Set(proxy.None)) },
			says:  []string{"https://localhost:", "no answer in time"},
		},
		"CA refuses": {
			begin: func(t *testing.T, r *distantAuthority) { node.Must(t, r.toCA.Set(proxy.Refuse)) },
			end:   func(t *testing.T, r *distantAuthority) { node.Must(t, r.toCA.Set(proxy.None)) },
			says:  []string{"https://localhost:", "CA https://127.0.0.1:", "connection refused"},
		},
		"CA silent": {
			begin: func(t *testing.T, r *distantAuthority) { node.Must(t, r.toCA.Set(proxy.Blackhole)) },
			end:   func(t *testing.T, r *distantAuthority) { node.Must(t, r.toCA.Set(proxy.None)) },
			says:  []string{"https://localhost:", "CA https://127.0.0.1:", "no answer in time"},
		},
		"API server refuses": {
			begin: func(t *testing.T, r *distantAuthority) { node.Must(t, r.toAPI.Set(proxy.Refuse)) },
			end:   func(t *testing.T, r *distantAuthority) { node.Must(t, r.toAPI.Set(proxy.None)) },
			says:  []string{"review a token at the API server", "connection refused"},
		},
		"API server silent": {
			begin: func(t *testing.T, r *distantAuthority) { node.Must(t, r.toAPI.Set(proxy.Blackhole)) },
			end:   func(t *testing.T, r *distantAuthority) { node.Must(t, r.toAPI.Set(proxy.None)) },
			says:  []string{"review a token at the API server", "no answer in time"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := startDistantAuthority(t)
			n := r.newNode()
			p, late := node.Pod{Name: "web-0", Attributes: map[string]string{"duration": "12s"}}, node.Pod{Name: "late-0"}
			r.admit(p)
			r.admit(late)
			n.Publish(p)
			o.begin(t, r)
			before := snapshot(n, p)
			begin := time.Now()
			err := n.TryPublish(late)
			for _, words := range o.says {
				expect(t, err, codes.Unavailable, words)
			}
			if took := time.Since(begin); took > 60*time.Second {
				t.Errorf("the kubelet waited for %s", took)
			}
			for _, words := range o.says {
				waitTrouble(n, p, "", words)
			}
			if snapshot(n, p) != before {
				t.Error("the files changed during the outage")
			}
			recoverAfter(n, p, func() {
				tries := failedRenewals(n)
				o.end(t, r)
				if name == "authority silent" {
					// The attempt in progress waits for a handshake that began in the outage. So
					// may the next one, and no other.
					node.Eventually(t, time.Minute, "the end of the attempt in progress", func() bool {
						return failedRenewals(n) > tries || trouble(n, p) == ""
					})
				}
			})
			n.Publish(late)
			n.Unpublish(late)
			n.Unpublish(p)
		})
	}
}
