// Load measures what the registration authority does for honest nodes while others
// attack it. It runs the real step-csi ra beside a real step-ca and an API server that
// takes 50 ms for a review, and prints a table: docs/security.md has it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/test/attackers"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var c config
	flag.IntVar(&c.nodes, "nodes", 100, "honest nodes")
	flag.DurationVar(&c.every, "every", 2*time.Second, "time between two certificates of a node")
	flag.DurationVar(&c.phase, "phase", 15*time.Second, "duration of each measurement")
	flag.IntVar(&c.rounds, "rounds", 3, "rounds of each measurement; those without and with the attack alternate")
	flag.IntVar(&c.addresses, "addresses", 5, "addresses that attack")
	flag.DurationVar(&c.pause, "pause", 20*time.Millisecond, "pause of each of an attacker's senders between two attempts")
	flag.StringVar(&c.only, "only", "", "only the attack with this `NAME`")
	attack := flag.String("attack", "", "be the attackers (the program starts itself with it)")
	address := flag.String("address", "", "attack the registration authority at this `ADDRESS`")
	flag.Parse()
	var err error
	if *attack != "" {
		err = c.attack(ctx, *attack, *address)
	} else {
		err = c.measure(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

type config struct {
	nodes, addresses    int
	rounds              int
	every, phase, pause time.Duration
	only                string
}

// everything is the name of all attacks at once.
const everything = "all of them"

// plugin is the pod of a node plugin.
func plugin(node string) issuer.Pod {
	return issuer.Pod{Namespace: "step-ca", Name: "step-csi-" + node, UID: "uid-" + node, ServiceAccount: "step-csi", Node: node}
}

// attack attacks from all addresses until ctx ends, and then prints how often. The first
// address is that of the honest nodes. The attackers have the lowest priority for the
// processor: they stand for machines of their own.
func (c config) attack(ctx context.Context, name, address string) error {
	if err := syscall.Setpriority(syscall.PRIO_PROCESS, 0, 19); err != nil {
		return err
	}
	var all sync.WaitGroup
	var done atomic.Int64
	for _, attack := range attackers.All() {
		if name != attack.Name && name != everything {
			continue
		}
		for n := range c.addresses {
			a := &attackers.Attacker{Address: address, From: netip.AddrFrom4([4]byte{127, 0, 0, byte(1 + n)}), Plugin: plugin("guessed"), Pause: c.pause}
			all.Go(func() {
				attack.Run(ctx, a)
				done.Add(a.Done.Load())
			})
		}
	}
	all.Wait()
	fmt.Println(done.Load())
	return nil
}

// measure measures without and with each attack, in turn.
func (c config) measure(ctx context.Context) error {
	r, err := start(ctx, c)
	if err != nil {
		return err
	}
	defer r.stop()
	names := []string{everything}
	for n, attack := range attackers.All() {
		names = slices.Insert(names, n, attack.Name)
	}
	fmt.Println("| attack | attempts per second | certificates per second | lost | median | 99th percentile | CPU | peak memory | log per second |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|")
	for _, name := range names {
		if c.only != "" && c.only != name {
			continue
		}
		without, with := &sample{}, &sample{}
		for range c.rounds {
			if err := r.sample(ctx, without, nil); err != nil {
				return err
			}
			self := exec.Command("/proc/self/exe", "-attack", name, "-address", r.address, "-addresses", fmt.Sprint(c.addresses), "-pause", c.pause.String())
			if err := r.sample(ctx, with, self); err != nil {
				return err
			}
		}
		if ctx.Err() != nil {
			return errors.New("interrupted")
		}
		fmt.Printf("| %s | %.0f | %.1f → %.1f (%.0f %%) | %d → %d | %s → %s | %s → %s | %.0f %% → %.0f %% | %d → %d MiB | %s → %s |\n",
			name, float64(with.attempts)/with.took.Seconds(), without.rate(), with.rate(), 100*with.rate()/without.rate(), without.errors, with.errors,
			without.percentile(50), with.percentile(50), without.percentile(99), with.percentile(99),
			without.cpu(), with.cpu(), without.memory>>20, with.memory>>20, without.logRate(), with.logRate())
		for _, failed := range with.failures {
			fmt.Fprintln(os.Stderr, "with", name+":", strings.TrimSpace(failed))
		}
	}
	return nil
}
