// Package proxies has the one rule by which all connections choose their HTTP proxy:
// that to the CA, to the registration authority and to the API server. It is the rule of
// net/http: the environment variables HTTPS_PROXY and NO_PROXY, which may be in lower case.
package proxies

import (
	"fmt"
	"net/http"
	"net/url"
)

// FromEnvironment is for http.Transport. gRPC and client-go use the same rule by default.
func FromEnvironment(r *http.Request) (*url.URL, error) { return http.ProxyFromEnvironment(r) }

// Has tells whether connections to the URL go through a proxy.
func Has(to *url.URL) (bool, error) {
	proxy, err := http.ProxyFromEnvironment(&http.Request{URL: to})
	if err != nil {
		return false, fmt.Errorf("HTTPS_PROXY: %w", err)
	}
	return proxy != nil, nil
}

// Explain names the proxy in the error of a connection to the URL, and says what to
// change. It returns the same error if there is no proxy.
func Explain(err error, to *url.URL) error {
	if err == nil {
		return nil
	}
	proxy, invalid := http.ProxyFromEnvironment(&http.Request{URL: to})
	if proxy == nil || invalid != nil {
		return err // an invalid HTTPS_PROXY is the error itself
	}
	// Not its user, which comes with a password.
	return fmt.Errorf("%w (through the proxy %s://%s of HTTPS_PROXY; to connect without it, add %s to NO_PROXY)", err, proxy.Scheme, proxy.Host, to.Hostname())
}
