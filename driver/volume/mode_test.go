package volume_test

import (
	"bytes"
	"strings"
	"testing"

	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"

	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/issuer"
)

// A publish whose file-mode keeps the application from its files succeeds, and the log has
// one warning.
func TestModeWarningIsLogged(t *testing.T) {
	for mode, warnings := range map[string]int{"0400": 1, "0444": 0} {
		f := newFixture(t)
		f.spec.Attributes = map[string]string{"file-mode": mode}
		var log bytes.Buffer
		ctx := klog.NewContext(t.Context(), textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(&log))))
		v, err := volume.Create(ctx, f.node, f.spec, issuer.Token{})
		must(t, err)
		const warning = `"Warning: the application may not be able to read the files" pod="shop/web-0" volumeID="csi-1" reason="file-mode: \"` // and the mode
		if got := strings.Count(log.String(), warning+mode); got != warnings {
			t.Errorf("mode %s: %d warnings in\n%s", mode, got, &log)
		}
		_, err = v.Close()
		must(t, err)
	}
}
