package programs

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestMosquitto has no new root: Mosquitto reads its roots once.
func TestMosquitto(t *testing.T) {
	t.Parallel()
	page := documented(t, "Mosquitto")
	server{
		section:      "Mosquitto",
		as:           account{uid: 1883, fsGroup: 1883},
		volume:       page.attributes(0),
		clientVolume: map[string]string{"service-names": "client"},
		start: func(s *site) {
			path := filepath.Join(s.directory, "mosquitto.conf")
			write(t, s.as, path, strings.Replace(page.code("text", 0, s.tls.path), "listener 8883", "listener "+s.port+" 127.0.0.1", 1))
			s.run(shell(page.code("sh", 0, s.tls.path, "/mosquitto/config/mosquitto.conf", path))...)
		},
		use: func(s *site, client *volume) error {
			// CONNECT with the client ID "c", and CONNACK with the code for success:
			// https://docs.oasis-open.org/mqtt/mqtt/v3.1.1/os/mqtt-v3.1.1-os.html
			return s.exchange(client, "\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01c", "\x20\x02\x00\x00")
		},
		refusal: refusedByAlert,
	}.test(t)
}
