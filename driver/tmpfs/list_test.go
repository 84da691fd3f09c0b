package tmpfs

import (
	"slices"
	"testing"

	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
)

// A volume that cannot be found is not renewed, so a line that may be one is never
// skipped in silence.
func TestListLogsOwnLinesThatItCannotParse(t *testing.T) {
	const good = "36 35 0:30 / /good ro,nosuid shared:1 - tmpfs csi.example rw,size=1024k\n"
	for name, c := range map[string]struct {
		line   string
		logged int
	}{
		"a mount id that is none": {`x 35 0:30 / /x ro - tmpfs csi.example rw`, 1},
		"fields are missing":      {"36 35 - tmpfs csi.example ", 1},
		"no device":               {"36 35 030 / /x ro - tmpfs csi.example rw", 1},
		"another source":          {`36 35 0:30 / /x\9 ro - tmpfs csi.example.com rw`, 0},
		"another type":            {`36 35 0:30 / /x\9 ro - ext4 csi.example rw`, 0},
		"an empty source":         {"36 35 0:30 / /x ro - tmpfs  rw", 0},
		"no source":               {"36 35 0:30 / /x ro - tmpfs", 0},
		"a part of a volume":      {"36 35 0:30 /tls.crt /x ro - tmpfs csi.example rw", 0},
		"an empty line":           {"", 0},
	} {
		t.Run(name, func(t *testing.T) {
			logger := ktesting.NewLogger(t, ktesting.NewConfig(ktesting.BufferLogs(true)))
			got := list(klog.NewContext(t.Context(), logger), c.line+"\n"+good, "csi.example")
			if !slices.Equal(got, []string{"/good"}) {
				t.Errorf("got %q", got)
			}
			if logged := logger.GetSink().(ktesting.Underlier).GetBuffer().Data(); len(logged) != c.logged {
				t.Errorf("logged %v", logged)
			}
		})
	}
}
