package bench

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/ra/server"
	"github.com/flexstack/step-csi/test/node"
)

// BenchmarkTokenReview has the API server of a real cluster review tokens of pods, as
// many at a time as one replica of the registration authority does. cpu-ms/review is
// the CPU time of the API server, which depends less on the machine's other load than
// the rate. Each token is a new one, because the API server caches reviews for ten
// seconds. docs/fleet.md simulates an API server of this speed.
func BenchmarkTokenReview(b *testing.B) {
	kubeconfig := os.Getenv("STEP_CSI_BENCH_KUBECONFIG")
	if kubeconfig == "" {
		b.Fatal("needs a cluster: run make bench")
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	node.Must(b, err)
	config.QPS = -1
	pods := newPods(b, config)
	reviewer, err := server.NewTokenReview(pods.authority(b, config))
	node.Must(b, err)
	const reviews = 16 // at a time
	b.Run(fmt.Sprintf("at-once=%d", reviews), func(b *testing.B) {
		tokens := make([]string, b.N)
		for i := range tokens {
			name := fmt.Sprint("review-", i%100)
			pods.make(b, "shop", name, "web")
			tokens[i] = pods.token(b, "shop", name)
		}
		before, begin := pods.cpuTime(b), time.Now()
		took := measure(reviews, b.N, func(i int) {
			_, err := reviewer.Review(context.Background(), issuer.NewToken(tokens[i], time.Time{}))
			node.Must(b, err)
		})
		elapsed := time.Since(begin)
		b.ReportMetric(float64(b.N)/elapsed.Seconds(), "reviews/s")
		b.ReportMetric(took.percentile(50), "ms/median")
		b.ReportMetric((pods.cpuTime(b)-before).Seconds()*1000/float64(b.N), "cpu-ms/review")
	})
}

// cpuTime returns the CPU time of the API server.
func (p *pods) cpuTime(b *testing.B) time.Duration {
	b.Helper()
	metrics, err := p.client.RESTClient().Get().AbsPath("/metrics").DoRaw(b.Context())
	node.Must(b, err)
	for line := range strings.Lines(string(metrics)) {
		if text, found := strings.CutPrefix(line, "process_cpu_seconds_total "); found {
			seconds, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
			node.Must(b, err)
			return time.Duration(seconds * float64(time.Second))
		}
	}
	b.Fatal("the API server has no metric process_cpu_seconds_total")
	return 0
}
