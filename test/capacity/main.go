// Capacity measures how much a step-ca database grows with each certificate, and prints
// a table: docs/capacity.md has it. It runs a real step-ca with each database: badger and
// bbolt in files, and PostgreSQL as a process of its own, on loopback.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/stepca"
	"github.com/flexstack/step-csi/test/realca"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	certificates := flag.Int("certificates", 10000, "number of certificates between two measurements")
	only := flag.String("database", "", "only the database with this `NAME`")
	flag.Parse()
	if err := measureAll(ctx, *certificates, *only); err != nil {
		fmt.Fprintln(os.Stderr, "capacity:", err)
		os.Exit(1)
	}
}

// requests are what pods ask for: the usual names, and as many as a pod can have.
var requests = []struct {
	title string
	dns   []string
}{
	{"the usual names", []string{"web.shop", "web.shop.svc", "web.shop.svc.cluster.local"}},
	{"100 names", many(99)},
}

func many(count int) []string {
	var all []string
	for n := range count {
		all = append(all, fmt.Sprintf("name-%02d.shop.svc.cluster.local", n))
	}
	return all
}

func measureAll(ctx context.Context, certificates int, only string) error {
	directory, err := os.MkdirTemp("", "step-csi-capacity-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(directory)
	// PostgreSQL runs as another user.
	if err := os.Chmod(directory, 0o755); err != nil {
		return err
	}
	program, err := realca.Build(directory)
	if err != nil {
		return err
	}
	fmt.Println("| database | names | bytes for each certificate |\n|---|---|---|")
	for _, d := range databases {
		if only != "" && only != d.title {
			continue
		}
		if err := measure(ctx, d, program, filepath.Join(directory, d.title), certificates); err != nil {
			return fmt.Errorf("%s: %w", d.title, err)
		}
	}
	return nil
}

// measure prints how much the database grows with each certificate. Certificates before
// the first measurement fill what the database allocates in advance.
func measure(ctx context.Context, d database, program, directory string, certificates int) error {
	for _, request := range requests {
		here := filepath.Join(directory, strings.ReplaceAll(request.title, " ", "-"))
		if err := os.MkdirAll(here, 0o755); err != nil {
			return err
		}
		server, err := d.start(here)
		if err != nil {
			return err
		}
		grown, err := grow(ctx, server, program, here, request.dns, certificates)
		if err := errors.Join(err, server.stop()); err != nil {
			return err
		}
		fmt.Printf("| %s | %s | %d |\n", d.title, request.title, grown/int64(certificates))
	}
	return nil
}

func grow(ctx context.Context, server server, program, directory string, dns []string, certificates int) (int64, error) {
	if err := os.MkdirAll(filepath.Join(directory, "ca"), 0o755); err != nil {
		return 0, err
	}
	ca, err := realca.StartWith(program, filepath.Join(directory, "ca"), server.configuration)
	if err != nil {
		return 0, err
	}
	defer ca.Stop()
	time.Sleep(time.Second)
	if err := sign(ctx, ca, dns, certificates/5); err != nil {
		return 0, err
	}
	before, err := sizeOf(ca, server)
	if err != nil {
		return 0, err
	}
	if err := sign(ctx, ca, dns, certificates); err != nil {
		return 0, err
	}
	after, err := sizeOf(ca, server)
	if err != nil {
		return 0, err
	}
	return after - before, checkEmptied(ctx, ca, server, dns)
}

// checkEmptied empties the database as the documentation describes, and checks that the
// CA signs.
func checkEmptied(ctx context.Context, ca *realca.CA, server server, dns []string) error {
	ca.Stop()
	if err := errors.Join(server.empty(), ca.Resume()); err != nil {
		return err
	}
	time.Sleep(time.Second)
	if err := sign(ctx, ca, dns, 10); err != nil {
		return fmt.Errorf("after the database was emptied: %w", err)
	}
	return nil
}

// sizeOf stops the CA, so that it writes everything, and starts it again. The CA refuses
// tokens that are older than itself, and the times in tokens are full seconds.
func sizeOf(ca *realca.CA, server server) (int64, error) {
	ca.Stop()
	size, err := server.size()
	err = errors.Join(err, ca.Resume())
	time.Sleep(time.Second)
	return size, err
}

// sign makes the CA sign the number of certificates, eight at a time.
func sign(ctx context.Context, ca *realca.CA, dns []string, count int) error {
	name, password := ca.Provisioner()
	signer, err := stepca.New(stepca.Config{
		URL: ca.URL(), Fingerprint: ca.Fingerprint(), Provisioner: name,
		Password: func() ([]byte, error) { return []byte(password), nil },
	})
	if err != nil {
		return err
	}
	defer signer.Close()
	i, err := issuer.New(issuer.Config{Signer: signer, Policy: func(context.Context, issuer.Pod, issuer.Request) error { return nil }})
	if err != nil {
		return err
	}
	if err := i.Connect(ctx); err != nil {
		return err
	}
	request := issuer.Request{Duration: 24 * time.Hour, KeyType: issuer.ECDSAP256}
	for _, text := range dns {
		parsed, err := names.ParseDNSName(text)
		if err != nil {
			return err
		}
		request.DNSNames = append(request.DNSNames, parsed)
	}
	id, err := names.ParseURI("spiffe://cluster.local/ns/shop/sa/default")
	if err != nil {
		return err
	}
	request.URIs = []names.URI{id}
	if request.CommonName, err = names.ParseCommonName(dns[0]); err != nil {
		return err
	}
	pod := issuer.Applicant{Pod: issuer.Pod{Namespace: "shop", Name: "web-0", UID: "7d6b4a54-0d6f-4a6e-8a4a-6f4b7d1f5b0e", ServiceAccount: "default"}}
	signing, ctx := errgroup.WithContext(ctx)
	signing.SetLimit(8)
	for range count {
		signing.Go(func() error {
			_, err := i.Issue(ctx, pod, request, issuer.PrivateKey{})
			return err
		})
	}
	return signing.Wait()
}
