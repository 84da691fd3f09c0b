package driver

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A volume that is not renewed, such as one of an issuer that was removed, is in the log
// again and again as a failed renewal, until it is renewed or gone.
func TestUnmanagedVolumesAreLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := measured(t, false)
		ctx, log := logging(t)
		removed, good := mounted("web-0", "tls"), mounted("web-1", "tls")
		removed.Attributes = map[string]string{"issuer": "edge"}
		removed.unmanaged = errors.New(`"edge" is not an issuer in the configuration`)
		good.Target = "other"
		d.show(removed, good)
		d.volumes.putUnread("pods/uid-2/volumes/kubernetes.io~csi/tls/mount", errors.New("no record"))
		go d.logUnmanaged(ctx)
		count := func(text string) int {
			synctest.Wait()
			return strings.Count(log.String(), text)
		}
		const line = `"Renewal failed" err="\"edge\" is not an issuer in the configuration" pod="shop/web-0"`
		const unread = `"Renewal failed" err="no record" target="pods/uid-2/volumes/kubernetes.io~csi/tls/mount"`
		time.Sleep(2 * time.Minute)
		if count(line) != 1 || count(unread) != 1 || count(`issuer="edge"`) != 1 {
			t.Fatalf("after two minutes:\n%s", log)
		}
		time.Sleep(time.Hour)
		if got := count(line); got < 4 || got > 5 || count(unread) != got {
			t.Errorf("%d and %d lines within an hour", got, count(unread))
		}
		before := count(line)
		removed.unmanaged = nil // the issuer is back
		d.show(removed, good)
		time.Sleep(time.Hour)
		if count(line) != before || count("web-1") != 0 {
			t.Errorf("a volume that is renewed is logged:\n%s", log)
		}
	})
}
