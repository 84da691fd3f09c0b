// Command demo (bin/step-csi-demo) shows on this machine what step-csi does. It runs a
// step-ca and the node plugin, publishes the volumes of two pods, and lets two peers
// talk mutual TLS with them while the certificates are renewed. It needs root, and
// removes everything that it creates.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc/status"

	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/test/embeddedca"
	"github.com/flexstack/step-csi/test/sandbox"
)

// The demo's certificates are renewed after about eight seconds, long before they expire:
// the demo also works on a slow machine. Real certificates are valid for hours or days.
const (
	lifetime    = time.Minute
	renewBefore = 52 * time.Second
)

func main() {
	binary := flag.String("step-csi", "", "the step-csi program (default: the one beside this program)")
	flag.Parse()
	sandbox.Enter()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	start := time.Now()
	err := run(ctx, *binary)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "\n✗ %v\n", err)
		os.Exit(1)
	}
	fmt.Printf("\nEverything worked as expected, in %s.\n", time.Since(start).Round(time.Second))
}

func run(ctx context.Context, binary string) (err error) {
	if binary == "" {
		binary = filepath.Join(filepath.Dir(os.Args[0]), "step-csi")
	}
	if _, err := exec.LookPath(binary); err != nil {
		return fmt.Errorf("%w; build it with: make build", err)
	}
	directory, err := os.MkdirTemp("", "step-csi-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(directory)) }()

	step("Start a step-ca in this process, with a root, an intermediate and the JWK provisioner admin")
	ca, err := embeddedca.Start(embeddedca.Config{Name: "Demo"})
	if err != nil {
		return err
	}
	defer ca.Stop()
	detail("%s, root fingerprint %s…", ca.URL(), ca.Fingerprint()[:16])

	step("Start the node plugin as a separate process")
	p, err := startPlugin(ctx, binary, directory, ca)
	if err != nil {
		return err
	}
	defer func() {
		stopErr := p.stop()
		if err = errors.Join(err, stopErr); err != nil {
			fmt.Fprintf(os.Stderr, "\nThe plugin's log:\n%s", p.log.String())
		}
	}()
	return show(ctx, p, ca)
}

// show runs the demo's steps with a plugin that is ready.
func show(ctx context.Context, p *plugin, ca *embeddedca.CA) error {
	orders := pod{namespace: "shop", name: "orders-6d5f8c-x2x7p", account: "orders", service: "orders"}
	billing := pod{namespace: "shop", name: "billing-79b4d9-k8fzq", account: "billing", service: "billing"}

	step("Two pods start: the kubelet asks for their volumes")
	for _, pod := range []pod{orders, billing} {
		took, err := p.publish(ctx, pod)
		if err != nil {
			return err
		}
		detail("%s/%s has its certificate after %s", pod.namespace, pod.name, took.Round(100*time.Microsecond))
	}
	step("The contents of a volume")
	if err := describe(p.target(orders)); err != nil {
		return err
	}
	if err := talkThroughRotation(ctx, p, orders, billing); err != nil {
		return err
	}
	if err := refuse(ctx, p, orders, ca); err != nil {
		return err
	}
	return finish(ctx, p, orders, billing)
}

// talkThroughRotation makes requests until both certificates have been renewed.
func talkThroughRotation(ctx context.Context, p *plugin, server, client pod) error {
	step("Mutual TLS between the pods, with a new connection for each request, until both certificates have been renewed")
	s, err := serve(p.target(server))
	if err != nil {
		return err
	}
	defer s.stop()
	before := [2]string{serial(p.target(server)), serial(p.target(client))}
	requests, start := 0, time.Now()
	for {
		if err := s.request(ctx, tlsClient(p.target(client), server.host())); err != nil {
			return fmt.Errorf("request %d failed: %w", requests+1, err)
		}
		requests++
		now := [2]string{serial(p.target(server)), serial(p.target(client))}
		if now[0] != before[0] && now[1] != before[1] {
			detail("%d requests in %s, none failed, with %d certificates of the server and %d of the client",
				requests, time.Since(start).Round(100*time.Millisecond), len(s.own), len(s.peers))
			return nil
		}
		if time.Since(start) > lifetime {
			return fmt.Errorf("the certificates were not renewed within %s", lifetime)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// refuse shows which requests are rejected.
func refuse(ctx context.Context, p *plugin, server pod, ca *embeddedca.CA) error {
	step("Rejected")
	s, err := serve(p.target(server))
	if err != nil {
		return err
	}
	defer s.stop()
	without := tlsClient(p.target(server), server.host())
	without.GetClientCertificate = nil
	foreign, err := foreignClient(p.target(server), server.host())
	if err != nil {
		return err
	}
	if err := expectRefusal("a peer without a certificate", s.request(ctx, without)); err != nil {
		return err
	}
	if err := expectRefusal("a peer with another CA's certificate for the same names", s.request(ctx, foreign)); err != nil {
		return err
	}
	thief := pod{namespace: "other", name: "thief-5c9d7-2q4rt", account: "thief", extra: map[string]string{"dns-names": server.host()}}
	signs := ca.Signs()
	_, err = p.publish(ctx, thief)
	if err := expectRefusal("a pod of another namespace that asks for the server's name", err); err != nil {
		return err
	}
	if ca.Signs() != signs || exists(p.target(thief)) {
		return errors.New("the plugin sent the rejected request to the CA, or created the volume")
	}
	err = os.WriteFile(filepath.Join(p.target(server), "tls.key"), []byte("mine"), 0o600)
	if !errors.Is(err, syscall.EROFS) {
		return fmt.Errorf("root writing into the volume: got error %v, want %v", err, syscall.EROFS)
	}
	return expectRefusal("root, writing into the volume", err)
}

// finish unpublishes the volumes, and checks that nothing is left.
func finish(ctx context.Context, p *plugin, pods ...pod) error {
	step("The pods end: the kubelet unpublishes their volumes")
	for _, pod := range pods {
		if err := p.unpublish(ctx, pod); err != nil {
			return err
		}
	}
	mounts, err := tmpfs.List(ctx, driverName)
	if err != nil {
		return err
	}
	for _, pod := range pods {
		if exists(p.target(pod)) {
			return fmt.Errorf("%s still exists", p.target(pod))
		}
	}
	if len(mounts) > 0 {
		return fmt.Errorf("still mounted: %q", mounts)
	}
	detail("no mount, no directory, no file is left")
	if bytes.Contains(p.log.Bytes(), []byte("PRIVATE KEY")) {
		return errors.New("the plugin's log contains a private key")
	}
	return nil
}

func expectRefusal(who string, err error) error {
	if err == nil {
		return fmt.Errorf("not rejected: %s", who)
	}
	var request *url.Error
	var path *fs.PathError
	message := status.Convert(err).Message()
	switch {
	case errors.As(err, &request):
		message = request.Err.Error()
	case errors.As(err, &path):
		message = path.Err.Error()
	}
	detail("%s: %s", who, message)
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

func step(text string) { fmt.Printf("\n● %s\n", text) }

func detail(format string, values ...any) { fmt.Printf("  "+format+"\n", values...) }
