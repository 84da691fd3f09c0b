package programs

import "testing"

func TestRedis(t *testing.T) {
	t.Parallel()
	page := documented(t, "Redis")
	server{
		section:      "Redis",
		as:           account{uid: 999, fsGroup: 999},
		volume:       page.attributes(0),
		clientAs:     account{uid: 10001, fsGroup: 10001},
		clientVolume: page.attributes(1),
		start: func(s *site) {
			config := s.directory + "/redis.conf"
			write(t, s.as, config, page.code("ini", 0, s.tls.path, "6379", s.port, "/run/redis", s.directory)+"bind 127.0.0.1\nsave \"\"\n")
			s.run("redis-server", config)
			s.waitListening()
			sidecar := page.code("sh", 0, s.tls.path, "/run/redis", s.directory)
			start(t, s.as, s.directory, 0, shell(sidecar)...)
		},
		use: func(s *site, client *volume) error {
			_, err := s.asClient(shell(s.of(client, page, "sh", 1, s.host, s.host+" -p "+s.port))...)
			return err
		},
		refusal:      cutOff,
		followsRoots: true,
	}.test(t)
}
