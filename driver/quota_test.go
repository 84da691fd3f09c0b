package driver

import (
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"

	"github.com/flexstack/step-csi/driver/cgroup"
	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/issuer"
)

const mib = 1 << 20

func TestQuota(t *testing.T) {
	q := quota{perPod: 32, perNode: 1000}
	pod := issuer.Pod{Namespace: "shop", Name: "web-0"}
	for name, test := range map[string]struct {
		count volumeCount
		usage *cgroup.Usage
		limit string
		want  string
	}{
		"the last of the pod":     {volumeCount{ofPod: 31, mounted: 31}, nil, "", ""},
		"another of the pod":      {volumeCount{ofPod: 32, mounted: 30, publishing: 2}, nil, limitPod, "pod shop/web-0 has 32 volumes of this driver; 32 are allowed: use fewer volumes, or raise limits.volumesPerPod"},
		"more than allowed":       {volumeCount{ofPod: 40, mounted: 40}, nil, limitPod, "has 40 volumes"},
		"the last of the node":    {volumeCount{mounted: 900, publishing: 99}, nil, "", ""},
		"another of the node":     {volumeCount{mounted: 900, publishing: 100}, nil, limitNode, "the node has 1000 volumes of this driver; 1000 are allowed: move pods to other nodes, or raise limits.volumesPerNode"},
		"plenty of memory":        {volumeCount{mounted: 100}, &cgroup.Usage{Limit: 256 * mib, Used: 60 * mib}, "", ""},
		"an eighth and one left":  {volumeCount{}, &cgroup.Usage{Limit: 256 * mib, Used: 224*mib - 64<<10}, "", ""},
		"less than that":          {volumeCount{}, &cgroup.Usage{Limit: 256 * mib, Used: 224*mib - 64<<10 + 1}, limitMemory, "the node plugin uses 223.9Mi of its memory limit of 256.0Mi, and keeps 32.1Mi free for the renewals of 0 volumes: move pods to other nodes, or raise resources.limits.memory"},
		"room for renewals":       {volumeCount{mounted: 512}, &cgroup.Usage{Limit: 256 * mib, Used: 208*mib - 64<<10}, "", ""},
		"none for renewals":       {volumeCount{mounted: 513}, &cgroup.Usage{Limit: 256 * mib, Used: 208*mib - 64<<10}, limitMemory, "for the renewals of 513 volumes"},
		"none for publishes":      {volumeCount{publishing: 512}, &cgroup.Usage{Limit: 256 * mib, Used: 200 * mib}, limitMemory, "keeps 64.1Mi free"},
		"a limit that is too low": {volumeCount{}, &cgroup.Usage{Limit: 8 * mib, Used: 20 * mib}, limitMemory, "uses 20.0Mi of its memory limit of 8.0Mi"},
		// The volumes of an earlier container are charged elsewhere.
		"the last that fits": {volumeCount{mounted: 639}, &cgroup.Usage{Limit: 64 * mib, Used: 10 * mib}, "", ""},
		"large ones":         {volumeCount{mounted: 99, extra: 90 * 400 << 10, beginning: 400 << 10}, &cgroup.Usage{Limit: 128 * mib, Used: 60 * mib}, "", ""},
		"too many large ones": {volumeCount{mounted: 199, extra: 190 * 400 << 10, beginning: 400 << 10}, &cgroup.Usage{Limit: 128 * mib, Used: 10 * mib}, limitMemory,
			"the node has 199 volumes of this driver, and 74.6Mi of their files are roots beyond a usual number; the node plugin's memory limit of 128.0Mi has room for 80.0Mi in all: move pods to other nodes, add fewer roots, or raise"},
		"large ones of little memory": {volumeCount{mounted: 99, extra: 90 * 400 << 10, beginning: 10 * 400 << 10}, &cgroup.Usage{Limit: 128 * mib, Used: 90 * mib}, limitMemory, "keeps 40.6Mi free for the renewals of 99 volumes"},
		"one too many":                {volumeCount{mounted: 640}, &cgroup.Usage{Limit: 64 * mib, Used: 10 * mib}, limitMemory, "the node has 640 volumes of this driver; the node plugin's memory limit of 64.0Mi has room for 640"},
	} {
		limit, err := q.check(pod, test.count, test.usage)
		if limit != test.limit || (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: limit %q, error %v", name, limit, err)
		}
	}
	// docs/configuration.md has these numbers.
	for limit, want := range map[int64]int{128 * mib: 1280, 256 * mib: 2560} {
		if got := volumesIn(limit); got != want {
			t.Errorf("%d MiB have room for %d volumes, want %d", limit/mib, got, want)
		}
	}
	// If only the container's group is visible, the volumes of an earlier container count
	// by themselves.
	inherited := volumeCount{mounted: 600, inherited: 600 * 120 << 10}
	for blind, want := range map[bool]string{false: "", true: limitMemory} {
		q := quota{blind: blind}
		if limit, err := q.check(pod, inherited, &cgroup.Usage{Limit: 128 * mib, Used: 30 * mib}); limit != want || (err != nil) != blind {
			t.Errorf("with volumes of an earlier container: blind %v, limit %q, error %v", blind, limit, err)
		}
	}
	if _, err := (quota{}).check(pod, volumeCount{ofPod: 1e6, mounted: 1e6, publishing: 1e6, inherited: 1e9, extra: 1e9, beginning: 1e9}, nil); err != nil {
		t.Errorf("without limits: %v", err)
	}
}

// quotaDriver returns a driver with limits, and the usage that its control group has.
func quotaDriver(t *testing.T, perPod int) (*Driver, *cgroup.Usage, *error) {
	t.Helper()
	d, _ := measured(t, false)
	usage, problem := &cgroup.Usage{}, new(error)
	d.quota = quota{perPod: perPod, refused: d.metrics.refused, memory: func() (cgroup.Usage, bool, error) {
		return *usage, usage.Limit > 0 && *problem == nil, *problem
	}}
	return d, usage, problem
}

func specOf(pod string, i int) volume.Spec {
	return volume.Spec{VolumeID: fmt.Sprint(pod, "-", i), Target: fmt.Sprint(pod, "/", i), Pod: issuer.Pod{UID: pod}}
}

// Of many concurrent publishes of a pod, only as many as allowed begin. A publish that
// failed, and a volume that was removed, make room again.
func TestPlacesOfAPod(t *testing.T) {
	d, _, _ := quotaDriver(t, 32)
	var mu sync.Mutex
	var begun []func()
	refused := 0
	var all sync.WaitGroup
	for i := range 1000 {
		all.Go(func() {
			done, err := d.admit(t.Context(), specOf("greedy", i))
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				begun = append(begun, done)
			} else if refused++; !errors.Is(err, errExhausted) || code(err) != codes.ResourceExhausted {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if len(begun) != 32 || refused != 968 {
		t.Errorf("%d publishes began, %d were refused", len(begun), refused)
	}
	if _, err := d.admit(t.Context(), specOf("other", 0)); err != nil {
		t.Errorf("another pod: %v", err)
	}
	begun[0]() // it failed
	done, err := d.admit(t.Context(), specOf("greedy", 2000))
	if err != nil {
		t.Fatal(err)
	}
	v := &volume.Volume{Spec: specOf("greedy", 2000)}
	d.volumes.put(v)
	done() // it is mounted, and counts once
	if _, err := d.admit(t.Context(), specOf("greedy", 2001)); err == nil {
		t.Error("more volumes than allowed")
	}
	d.volumes.remove(v.VolumeID, v.Target)
	if _, err := d.admit(t.Context(), specOf("greedy", 2001)); err != nil {
		t.Errorf("after a volume was removed: %v", err)
	}
}

// Publishes in progress have no memory yet, but count. Refusals are counted. An
// unreadable usage does not keep pods from starting.
func TestPlacesInMemory(t *testing.T) {
	d, usage, problem := quotaDriver(t, 0)
	*usage = cgroup.Usage{Limit: 256 * mib, Used: 190 * mib}
	begun := 0
	for i := range 1000 {
		if _, err := d.admit(t.Context(), specOf(fmt.Sprint(i), 0)); err == nil {
			begun++
		} else if code(err) != codes.ResourceExhausted {
			t.Fatal(err)
		}
	}
	if want := 34 * mib / volumeMemory; begun != want {
		t.Errorf("%d publishes began, want %d", begun, want)
	}
	counts := scrapeRefusals(t, d)
	if counts[limitMemory] != float64(1000-begun) || counts[limitPod] != 0 {
		t.Errorf("the metric counts %v", counts)
	}
	*problem = errors.New("no such file")
	if _, err := d.admit(t.Context(), specOf("x", 0)); err != nil {
		t.Errorf("without a readable usage: %v", err)
	}
	*problem, usage.Limit = nil, 0
	if _, err := d.admit(t.Context(), specOf("y", 0)); err != nil {
		t.Errorf("without a limit: %v", err)
	}
}

func scrapeRefusals(t *testing.T, d *Driver) map[string]float64 {
	t.Helper()
	counts := map[string]float64{}
	for _, limit := range []string{limitPod, limitNode, limitMemory} {
		counts[limit] = testutil.ToFloat64(d.metrics.refusals.WithLabelValues(limit))
	}
	return counts
}

// The process leaves the volumes their room of the memory limit, also a small one, and keeps a
// limit of GOMEMLIMIT.
func TestLimitProcess(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	for _, test := range []struct{ container, own, want int64 }{
		{64 * mib, math.MaxInt64, 24 * mib},
		{256 * mib, math.MaxInt64, 96 * mib},
		{16 * mib, math.MaxInt64, leastProcessMemory},
		{64 * mib, 30 * mib, 30 * mib},
		{0, math.MaxInt64, math.MaxInt64},
	} {
		debug.SetMemoryLimit(test.own)
		quota{memory: func() (cgroup.Usage, bool, error) {
			return cgroup.Usage{Limit: test.container}, test.container > 0, nil
		}}.limitProcess()
		got := debug.SetMemoryLimit(-1)
		if got != test.want || test.want == 24*mib && got+roomIn(test.container) != test.container {
			t.Errorf("with %d bytes for the container and %d for Go, the limit is %d, want %d", test.container, test.own, got, test.want)
		}
	}
	quota{}.limitProcess() // without a control group
}
