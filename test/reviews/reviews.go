// Package reviews is an API server that answers only TokenReviews, from a table.
// test/e2e tests how the real API server makes and verifies tokens.
package reviews

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"

	"go.step.sm/crypto/minica"
	authentication "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"

	"github.com/flexstack/step-csi/issuer"
)

// Server answers TokenReviews.
type Server struct {
	server *httptest.Server
	root   *x509.Certificate
	decode runtime.Decoder

	mu     sync.Mutex
	tokens map[string]authentication.TokenReviewStatus
	asked  atomic.Int64
	hang   atomic.Bool
}

// Start serves on loopback.
func Start() (*Server, error) {
	ca, err := minica.New()
	if err != nil {
		return nil, err
	}
	key, err := issuer.ECDSAP256.Generate()
	if err != nil {
		return nil, err
	}
	leaf, err := ca.Sign(&x509.Certificate{DNSNames: []string{"localhost"}, PublicKey: key.Public()})
	if err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	if err := authentication.AddToScheme(scheme); err != nil {
		return nil, err
	}
	s := &Server{
		root: ca.Root, tokens: map[string]authentication.TokenReviewStatus{},
		decode: serializer.NewCodecFactory(scheme).UniversalDeserializer(),
	}
	s.server = httptest.NewUnstartedServer(s)
	s.server.EnableHTTP2 = true
	s.server.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{
		Certificate: [][]byte{leaf.Raw, ca.Intermediate.Raw}, PrivateKey: key.Signer,
	}}}
	s.server.StartTLS()
	return s, nil
}

// Stop closes the server and its connections.
func (s *Server) Stop() {
	s.server.CloseClientConnections()
	s.server.Close()
}

// URL of the server; its certificate is for localhost.
func (s *Server) URL() string {
	_, port, _ := net.SplitHostPort(s.server.Listener.Addr().String())
	return "https://" + net.JoinHostPort("localhost", port)
}

// RootPEM is the root certificate that verifies the server, in PEM.
func (s *Server) RootPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.root.Raw})
}

// Asked returns the number of reviews so far.
func (s *Server) Asked() int64 { return s.asked.Load() }

// Hang(true) makes the server accept requests without an answer, until Hang(false).
func (s *Server) Hang(on bool) { s.hang.Store(on) }

// Bind makes the token valid, bound to the pod, for the audience step-csi.
func (s *Server) Bind(token string, pod issuer.Pod) { s.Set(token, Bound(pod)) }

// Bound is the status of a valid token that is bound to the pod.
func Bound(pod issuer.Pod) authentication.TokenReviewStatus {
	status := authentication.TokenReviewStatus{Authenticated: true, Audiences: []string{issuer.TokenAudience}}
	status.User.Username = "system:serviceaccount:" + pod.Namespace + ":" + pod.ServiceAccount
	status.User.Extra = map[string]authentication.ExtraValue{
		"authentication.kubernetes.io/pod-name":  {pod.Name},
		"authentication.kubernetes.io/pod-uid":   {pod.UID},
		"authentication.kubernetes.io/node-name": {pod.Node},
	}
	return status
}

// Set makes the status the answer for the token.
func (s *Server) Set(token string, status authentication.TokenReviewStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens[token] = status
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.asked.Add(1)
	body, err := io.ReadAll(r.Body) // before hanging: until the body is read, net/http does not notice a closed connection
	if s.hang.Load() {
		<-r.Context().Done()
		return
	}
	review := &authentication.TokenReview{}
	if err == nil {
		_, _, err = s.decode.Decode(body, nil, review)
	}
	if err != nil || r.URL.Path != "/apis/authentication.k8s.io/v1/tokenreviews" || r.Method != http.MethodPost {
		http.Error(w, "only tokenreviews", http.StatusNotFound)
		return
	}
	s.mu.Lock()
	status, known := s.tokens[review.Spec.Token]
	s.mu.Unlock()
	if !known {
		status.Error = "[invalid bearer token, unknown]"
	}
	review.Status = status
	review.APIVersion, review.Kind = "authentication.k8s.io/v1", "TokenReview"
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(review)
}
