package programs

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/flexstack/step-csi/test/loopback"
	"github.com/flexstack/step-csi/test/node"
)

func TestRabbitMQ(t *testing.T) {
	t.Parallel()
	page := documented(t, "RabbitMQ")
	server{
		section:      "RabbitMQ",
		as:           account{uid: 999, fsGroup: 999},
		volume:       page.attributes(0),
		clientVolume: map[string]string{"service-names": "client"},
		start: func(s *site) {
			in := func(name string) string { return filepath.Join(s.directory, name) }
			config := strings.Replace(page.code("ini", 0, s.tls.path), "default = 5671", "default = 127.0.0.1:"+s.port, 1)
			write(t, s.as, in("rabbitmq.conf"), config+"log.file = false\nlog.console = true\n")
			write(t, s.as, in("enabled_plugins"), "[].\n")
			address, err := loopback.Address(loopback.IP)
			node.Must(t, err)
			_, distribution, _ := strings.Cut(address, ":")
			s.run("env",
				"RABBITMQ_CONFIG_FILE="+in("rabbitmq.conf"), "RABBITMQ_CONF_ENV_FILE="+in("none"),
				"RABBITMQ_ENABLED_PLUGINS_FILE="+in("enabled_plugins"), "RABBITMQ_FEATURE_FLAGS_FILE="+in("feature_flags"),
				"RABBITMQ_MNESIA_BASE="+in("mnesia"), "RABBITMQ_LOG_BASE="+in("log"), "RABBITMQ_PID_FILE="+in("pid"),
				"RABBITMQ_GENERATED_CONFIG_DIR="+in("generated"), "RABBITMQ_SCHEMA_DIR="+in("schema"),
				"RABBITMQ_NODENAME=test@localhost", "RABBITMQ_DIST_PORT="+distribution,
				// Without epmd, a daemon that would outlive the test, and with one scheduler,
				// which does not spin.
				"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-sname test@localhost -start_epmd false -erl_epmd_port "+distribution+
					" -kernel inet_dist_use_interface {127,0,0,1} -ssl ssl_pem_cache_clean 2000 +S 1:1 +SDcpu 1:1 +SDio 1 +sbwt none",
				"/usr/lib/rabbitmq/bin/rabbitmq-server")
		},
		use: func(s *site, client *volume) error {
			// The protocol's header, and the frame of the method Connection.Start:
			// https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf
			return s.exchange(client, "AMQP\x00\x00\x09\x01", "\x01\x00\x00")
		},
		refusal:      refusedByAlert,
		followsRoots: true,
	}.test(t)
}
