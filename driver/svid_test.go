package driver

import (
	"net/url"
	"testing"

	"github.com/go-logr/logr/funcr"
	"k8s.io/klog/v2"
)

func TestLogNoSVID(t *testing.T) {
	id := &url.URL{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/shop/sa/web"}
	another := &url.URL{Scheme: "spiffe", Host: "cluster.local", Path: "/web"}
	page, login := &url.URL{Scheme: "https", Host: "example.com"}, &url.URL{Scheme: "https", Host: "example.org"}
	for name, test := range map[string]struct {
		uris []*url.URL
		said int
	}{
		"no URI":         {nil, 0},
		"the ID alone":   {[]*url.URL{id}, 0},
		"another alone":  {[]*url.URL{page}, 0},
		"and another":    {[]*url.URL{id, page}, 1},
		"and another ID": {[]*url.URL{id, another}, 1},
		"no ID":          {[]*url.URL{page, login}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			said := 0
			logger := funcr.New(func(_, _ string) { said++ }, funcr.Options{})
			v := &volume{}
			v.attributes.Request.URIs = test.uris
			v.logNoSVID(klog.NewContext(t.Context(), logger))
			if said != test.said {
				t.Errorf("said %d times, not %d", said, test.said)
			}
		})
	}
}
