package bench

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/test/node"
)

// BenchmarkPublishRSA measures the CSI call for volumes with RSA keys, as BenchmarkPublish
// does, with and without prepared keys. Each round of callers begins when as many keys are
// prepared.
func BenchmarkPublishRSA(b *testing.B) {
	authority := startCA(b)
	for _, keyType := range []issuer.KeyType{issuer.RSA2048, issuer.RSA3072, issuer.RSA4096} {
		for _, callers := range []int{1, 10} {
			for _, prepared := range []bool{false, true} {
				b.Run(fmt.Sprintf("%s/at-once=%d/prepared=%t", keyType, callers, prepared), func(b *testing.B) {
					keys := issuer.NewKeyGenerator()
					n := startNodeWith(b, issuerWith(b, issuer.Config{Signer: directSigner(b, authority), Keys: keys}))
					if !prepared {
						keys.Prepare(nil)
					}
					requests := n.requestsWith(callers, map[string]string{"service-names": "web", "key-type": string(keyType)})
					publish := func(i int) {
						_, err := n.driver.NodePublishVolume(context.Background(), requests[i])
						node.Must(b, err)
					}
					if prepared {
						for range callers { // a use for each key
							_, err := keys.Generate(b.Context(), issuer.Applicant{Pod: issuer.Pod{Namespace: "shop"}}, keyType)
							node.Must(b, err)
						}
					}
					var took times
					for left := b.N; left > 0; left -= callers {
						for prepared && keys.Prepared(keyType) < callers {
							time.Sleep(10 * time.Millisecond)
						}
						took = append(took, measure(callers, min(left, callers), publish)...)
						for _, r := range requests {
							n.unpublish(b, r)
						}
					}
					b.ReportMetric(took.percentile(50), "ms/median")
					b.ReportMetric(took.percentile(100), "ms/max")
				})
			}
		}
	}
}
