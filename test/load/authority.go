package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/ra"
	"github.com/flexstack/step-csi/test/embeddedca"
	"github.com/flexstack/step-csi/test/node"
	"github.com/flexstack/step-csi/test/reviews"
)

// reviewTime is how long the API server takes for a review.
const reviewTime = 50 * time.Millisecond

// running is a registration authority with all it needs, and its honest nodes.
type running struct {
	config    config
	address   string
	directory string
	ca        *embeddedca.CA
	reviews   *reviews.Server
	process   *exec.Cmd
	logged    logSize
	honest    []*honestNode
}

// logSize counts what is written to it.
type logSize struct{ bytes atomic.Int64 }

func (l *logSize) Write(p []byte) (int, error) {
	l.bytes.Add(int64(len(p)))
	return len(p), nil
}

func start(ctx context.Context, c config) (_ *running, err error) {
	r := &running{config: c}
	defer func() {
		if err != nil {
			r.stop()
		}
	}()
	if r.ca, err = embeddedca.Start(embeddedca.Config{}); err != nil {
		return nil, err
	}
	if r.reviews, err = reviews.Start(); err != nil {
		return nil, err
	}
	r.reviews.Delay(reviewTime)
	if r.directory, err = os.MkdirTemp("", "step-csi-load-"); err != nil {
		return nil, err
	}
	if err := r.startAuthority(); err != nil {
		return nil, err
	}
	for n := range c.nodes {
		h, err := r.newNode(fmt.Sprint("node-", n))
		if err != nil {
			return nil, err
		}
		r.honest = append(r.honest, h)
	}
	ready, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for r.honest[0].signer.Connect(ready) != nil {
		if ready.Err() != nil {
			return nil, errors.New("the registration authority does not start")
		}
		time.Sleep(50 * time.Millisecond)
	}
	return r, nil
}

func (r *running) startAuthority() error {
	binary, err := node.Build(r.directory, false)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	r.address = listener.Addr().String()
	listener.Close()
	name, password := r.ca.Provisioner()
	own := reviews.Token(issuer.Pod{Namespace: "step-ca", Name: "ra-1", UID: "ra-1", ServiceAccount: "step-csi-ra", Node: "node-0"}, "ra")
	for file, content := range map[string]string{
		"password": password, "token": own, "api.crt": string(r.reviews.RootPEM()),
		"step-csi.yaml": fmt.Sprintf(`
issuers:
  default: {url: %q, fingerprint: %s, provisioner: {type: jwk, name: %s, passwordFile: password}}
authority:
  names: [localhost]
  plugin: step-ca/step-csi
  kubernetes: {url: %q, caFile: %[5]s/api.crt, tokenFile: %[5]s/token}
`, r.ca.URL(), r.ca.Fingerprint(), name, r.reviews.URL(), r.directory),
	} {
		if err := os.WriteFile(filepath.Join(r.directory, file), []byte(content), 0o600); err != nil {
			return err
		}
	}
	r.process = binary.Command("ra", "--config", filepath.Join(r.directory, "step-csi.yaml"), "--listen", r.address)
	r.process.Stdout, r.process.Stderr = &r.logged, &r.logged
	return r.process.Start()
}

func (r *running) stop() {
	for _, h := range r.honest {
		h.signer.Close()
	}
	if r.process != nil && r.process.Process != nil {
		_ = r.process.Process.Signal(syscall.SIGTERM)
		_ = r.process.Wait()
	}
	if r.reviews != nil {
		r.reviews.Stop()
	}
	if r.ca != nil {
		r.ca.Stop()
	}
	os.RemoveAll(r.directory)
}

// proc reads a file of the registration authority's process.
func (r *running) proc(name string) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", r.process.Process.Pid, name))
	if err != nil {
		panic(err) // it has ended
	}
	return string(text)
}

// resetPeak makes peak return the peak from now on. See proc(5), clear_refs.
func (r *running) resetPeak() error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", r.process.Process.Pid), []byte("5"), 0)
}

// peak is the most memory that the process had, in bytes.
func (r *running) peak() int64 {
	_, after, _ := strings.Cut(r.proc("status"), "VmHWM:")
	kib, _ := strconv.ParseInt(strings.Fields(after)[0], 10, 64)
	return kib << 10
}

// cpuTime is the processor time that the process took so far.
func (r *running) cpuTime() time.Duration {
	_, after, _ := strings.Cut(r.proc("stat"), ") ")
	fields := strings.Fields(after)
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * time.Second / 100
}

// honestNode is a node with pods that need certificates.
type honestNode struct {
	signer *ra.Signer
	pods   []issuer.Applicant
	csr    issuer.SigningRequest
	next   int
}

// podsOfNode keep each pod below its rate limit.
const podsOfNode = 20

func (r *running) newNode(name string) (*honestNode, error) {
	pod := plugin(name)
	token := reviews.Token(pod, "plugin")
	r.reviews.Bind(token, pod)
	_, port, _ := net.SplitHostPort(r.address)
	h := &honestNode{}
	var err error
	h.signer, err = ra.New(ra.Config{
		URL: "https://localhost:" + port, Fingerprint: r.ca.Fingerprint(), Issuer: "default",
		Token: func() ([]byte, error) { return []byte(token), nil },
	})
	if err != nil {
		return nil, err
	}
	if h.csr, err = newRequest(); err != nil {
		return nil, err
	}
	for n := range podsOfNode {
		uid := fmt.Sprint(name, "-pod-", n)
		web := issuer.Pod{Namespace: "shop", Name: uid, UID: uid, ServiceAccount: "web", Node: name}
		token := reviews.Token(web, "web")
		r.reviews.Bind(token, web)
		h.pods = append(h.pods, issuer.Applicant{Pod: web, Token: issuer.NewToken(token, time.Now().Add(24*time.Hour))})
	}
	return h, nil
}

// newRequest returns a request for a certificate that any pod of shop may have.
func newRequest() (issuer.SigningRequest, error) {
	request := issuer.Request{CommonName: names.Must(names.ParseCommonName("web.shop.svc")), DNSNames: namesOfWeb(), Duration: time.Hour, KeyType: issuer.ECDSAP256}
	key, err := request.KeyType.Generate()
	if err != nil {
		return issuer.SigningRequest{}, err
	}
	csr, err := issuer.NewCSR(request, key)
	return issuer.SigningRequest{Request: request, CSR: csr}, err
}
