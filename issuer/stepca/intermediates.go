package stepca

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/smallstep/certificates/api"
)

// Intermediates implements issuer.Intermediates. It does not connect by itself, and returns
// none before the first connection. The package's client has no such call.
func (s *Signer) Intermediates(ctx context.Context) ([]*x509.Certificate, error) {
	c := s.connection.Load()
	if c == nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.config.Timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url.JoinPath("intermediates").String(), nil)
	if err != nil {
		return nil, err
	}
	response, err := limitedTransport{c.transport, &s.clock}.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK && response.StatusCode != http.StatusCreated {
		return nil, fmt.Errorf("HTTP %s", response.Status) // step-ca before 0.24, or with another CA behind it
	}
	var answer api.IntermediatesResponse
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return nil, err
	}
	return certificates(answer.Certificates)
}
