// Command step-csi-demo shows what step-csi does, for real, on this machine: a
// step-ca, the node plugin, and two pods' volumes whose certificates are renewed
// while two peers talk mutual TLS with them. It needs root, and leaves nothing.
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

// lifetime of the demo's certificates. Real ones live for a day.
const lifetime = 12 * time.Second

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
	fmt.Printf("\nAll of it was as it should be, in %s.\n", time.Since(start).Round(time.Second))
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

	step("A step-ca in this process, with a root, an intermediate and the JWK provisioner admin")
	ca, err := embeddedca.Start(embeddedca.Config{Name: "Demo"})
	if err != nil {
		return err
	}
	defer ca.Stop()
	detail("%s, root fingerprint %s…", ca.URL(), ca.Fingerprint()[:16])

	step("The node plugin, as a process of its own")
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

// show is the demo, once everything runs.
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
	step("What is in a volume")
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

// talkThroughRotation lets the two peers talk until both certificates have been
// renewed.
func talkThroughRotation(ctx context.Context, p *plugin, server, client pod) error {
	step("Mutual TLS between them, a new connection for each request, until both certificates have been renewed")
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
			return errors.New("the certificates were not renewed in time")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// refuse shows who does not get in.
func refuse(ctx context.Context, p *plugin, server pod, ca *embeddedca.CA) error {
	step("Who is refused")
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
		return errors.New("the CA was asked all the same, or there is a volume")
	}
	err = os.WriteFile(filepath.Join(p.target(server), "tls.key"), []byte("mine"), 0o600)
	if !errors.Is(err, syscall.EROFS) {
		return fmt.Errorf("root could write into the volume: %v", err)
	}
	return expectRefusal("root, writing into the volume", err)
}

// finish takes the volumes away, and looks for what is left.
func finish(ctx context.Context, p *plugin, pods ...pod) error {
	step("The pods go")
	for _, pod := range pods {
		if err := p.unpublish(ctx, pod); err != nil {
			return err
		}
	}
	mounts, err := tmpfs.List(driverName)
	if err != nil {
		return err
	}
	for _, pod := range pods {
		if exists(p.target(pod)) {
			return fmt.Errorf("%s is still there", p.target(pod))
		}
	}
	if len(mounts) > 0 {
		return fmt.Errorf("still mounted: %q", mounts)
	}
	detail("no mount, no directory, no file is left")
	if bytes.Contains(p.log.Bytes(), []byte("PRIVATE KEY")) {
		return errors.New("there is a key in the log")
	}
	return nil
}

func expectRefusal(who string, err error) error {
	if err == nil {
		return fmt.Errorf("%s got in", who)
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
