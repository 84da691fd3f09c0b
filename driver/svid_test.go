package driver

import (
	"testing"

	"github.com/go-logr/logr/funcr"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer/names"
)

func TestLogNoSVID(t *testing.T) {
	const id, another = "spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/web"
	const page, login = "https://example.com", "https://example.org"
	for name, test := range map[string]struct {
		uris []string
		said int
	}{
		"no URI":         {nil, 0},
		"the ID alone":   {[]string{id}, 0},
		"another alone":  {[]string{page}, 0},
		"and another":    {[]string{id, page}, 1},
		"and another ID": {[]string{id, another}, 1},
		"no ID":          {[]string{page, login}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			said := 0
			logger := funcr.New(func(_, _ string) { said++ }, funcr.Options{})
			v := &volume{}
			v.attributes.Request.URIs = names.Must(names.ParseAll(names.ParseURI, test.uris...))
			v.logNoSVID(klog.NewContext(t.Context(), logger))
			if said != test.said {
				t.Errorf("said %d times, not %d", said, test.said)
			}
		})
	}
}
