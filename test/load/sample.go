package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/flexstack/step-csi/issuer/names"
)

func namesOfWeb() []names.DNSName {
	return names.Must(names.ParseAll(names.ParseDNSName, "web.shop.svc", "web.shop.svc.cluster.local"))
}

// sample is the sum of the rounds of a measurement.
type sample struct {
	took     time.Duration
	latency  []time.Duration // of each certificate
	errors   int
	failures []string // some of them
	attempts int64
	busy     time.Duration
	memory   int64
	logged   int64
}

func (s *sample) rate() float64 { return float64(len(s.latency)) / s.took.Seconds() }
func (s *sample) cpu() float64  { return 100 * s.busy.Seconds() / s.took.Seconds() }
func (s *sample) logRate() string {
	return fmt.Sprintf("%.0f KB/s", float64(s.logged)/1000/s.took.Seconds())
}

func (s *sample) percentile(p int) time.Duration {
	if len(s.latency) == 0 {
		return 0
	}
	slices.Sort(s.latency)
	return s.latency[(len(s.latency)-1)*p/100].Round(time.Millisecond)
}

// settle is how long an attack runs before it is measured.
const settle = 2 * time.Second

// sample measures for the time of a phase, and adds to s. The attack's process runs
// meanwhile, if it is not nil.
func (r *running) sample(ctx context.Context, s *sample, attack *exec.Cmd) error {
	var output strings.Builder
	if attack != nil {
		attack.Stdout, attack.Stderr = &output, io.Writer(os.Stderr)
		if err := attack.Start(); err != nil {
			return err
		}
	}
	time.Sleep(settle)
	if err := r.resetPeak(); err != nil {
		return err
	}
	cpu, logged, begin := r.cpuTime(), r.logged.bytes.Load(), time.Now()
	r.sign(ctx, s)
	s.took += time.Since(begin)
	s.busy += r.cpuTime() - cpu
	s.logged += r.logged.bytes.Load() - logged
	s.memory = max(s.memory, r.peak())
	if attack == nil {
		return nil
	}
	_ = attack.Process.Signal(syscall.SIGTERM)
	if err := attack.Wait(); err != nil {
		return fmt.Errorf("the attackers: %w", err)
	}
	attempts, err := strconv.ParseInt(strings.TrimSpace(output.String()), 10, 64)
	if err != nil {
		return errors.New("the attackers print no count")
	}
	s.attempts += attempts
	return nil
}

// sign has each node get a certificate again and again, at a steady rate, and not after
// the one before.
func (r *running) sign(ctx context.Context, s *sample) {
	limited, cancel := context.WithTimeout(ctx, r.config.phase)
	defer cancel()
	var mu sync.Mutex
	var all sync.WaitGroup
	for n, h := range r.honest {
		all.Go(func() {
			time.Sleep(r.config.every * time.Duration(n) / time.Duration(len(r.honest)))
			for tick := time.NewTicker(r.config.every); ; {
				all.Go(func() {
					took, err := h.sign(ctx)
					mu.Lock()
					defer mu.Unlock()
					if err == nil {
						s.latency = append(s.latency, took)
					} else if s.errors++; len(s.failures) < 5 {
						s.failures = append(s.failures, err.Error())
					}
				})
				select {
				case <-tick.C:
				case <-limited.Done():
					tick.Stop()
					return
				}
			}
		})
	}
	all.Wait()
}

func (h *honestNode) sign(ctx context.Context) (time.Duration, error) {
	request := h.csr
	request.Applicant = h.pods[h.next%len(h.pods)]
	h.next++
	begin := time.Now()
	_, err := h.signer.Sign(ctx, request)
	return time.Since(begin), err
}
