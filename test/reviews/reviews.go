// Package reviews is an API server that answers TokenReviews, from a table, and stores
// events. It answers nothing else.
// test/e2e tests how the real API server makes and verifies tokens.
package reviews

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.step.sm/crypto/minica"
	authentication "k8s.io/api/authentication/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"

	"github.com/flexstack/step-csi/issuer"
)

// Server answers TokenReviews, and stores events.
type Server struct {
	server *httptest.Server
	root   *x509.Certificate
	decode runtime.Decoder

	mu     sync.Mutex
	tokens map[string]authentication.TokenReviewStatus
	events map[string]core.Event // by namespace and name
	asked  atomic.Int64
	hang   atomic.Bool
	delay  atomic.Int64 // nanoseconds
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
		root: ca.Root, tokens: map[string]authentication.TokenReviewStatus{}, events: map[string]core.Event{},
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

// Delay makes the server answer only after the time.
func (s *Server) Delay(d time.Duration) { s.delay.Store(int64(d)) }

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

// Issuer is the issuer of the tokens.
const Issuer = "https://kubernetes.default.svc.cluster.local"

// expiry of the tokens is in the year 2100, so that the same name makes the same token.
const expiry = 4102444800

// Token returns a token with the claims that the API server writes for the pod. Its name makes it another one. Nothing signs it: Bind makes it
// valid.
func Token(pod issuer.Pod, name string) string {
	return Claims(pod, name, func(map[string]any) {})
}

// Claims is Token with other claims.
func Claims(pod issuer.Pod, name string, change func(claims map[string]any)) string {
	claims := map[string]any{
		"iss": Issuer, "aud": []string{issuer.TokenAudience}, "sub": "system:serviceaccount:" + pod.Namespace + ":" + pod.ServiceAccount,
		"jti": name, "exp": expiry,
		"kubernetes.io": map[string]any{
			"namespace": pod.Namespace, "serviceaccount": map[string]string{"name": pod.ServiceAccount, "uid": "uid"},
			"pod": map[string]string{"name": pod.Name, "uid": pod.UID}, "node": map[string]string{"name": pod.Node, "uid": "uid"},
		},
	}
	change(claims)
	text, _ := json.Marshal(claims) // a map of strings and numbers
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(`{"alg":"RS256"}`)) + "." + encode(text) + "." + encode([]byte("signature"))
}

// Set makes the status the answer for the token.
func (s *Server) Set(token string, status authentication.TokenReviewStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens[token] = status
}

// Events returns the events so far.
func (s *Server) Events() []core.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.events))
}

// createEvent stores an event. Each name is given once.
func (s *Server) createEvent(w http.ResponseWriter, r *http.Request) {
	event := core.Event{}
	err := json.NewDecoder(r.Body).Decode(&event)
	path := "/api/v1/namespaces/" + event.Namespace + "/events"
	if err != nil || event.Namespace == "" || event.InvolvedObject.Namespace != event.Namespace || r.URL.Path != path || r.Method != http.MethodPost {
		http.Error(w, "invalid event", http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := event.Namespace + "/" + event.Name
	w.Header().Set("Content-Type", "application/json")
	if _, exists := s.events[key]; exists {
		w.WriteHeader(http.StatusConflict)
		_, _ = io.WriteString(w, `{"apiVersion":"v1","kind":"Status","status":"Failure","reason":"AlreadyExists","code":409}`)
		return
	}
	s.events[key] = event
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(event)
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, "/api/v1/") {
		s.createEvent(w, r)
		return
	}
	s.asked.Add(1)
	body, err := io.ReadAll(r.Body) // before hanging: until the body is read, net/http does not notice a closed connection
	if s.hang.Load() {
		<-r.Context().Done()
		return
	}
	time.Sleep(time.Duration(s.delay.Load()))
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
