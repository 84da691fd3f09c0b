package tmpfs

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

func TestSELinux(t *testing.T) {
	const without, with = "nodev\tsysfs\nnodev\ttmpfs\n\text4\n", "nodev\tsysfs\nnodev\tselinuxfs\n\text4\n"
	for name, test := range map[string]struct {
		systems, current string
		want             bool
	}{
		"a kernel without SELinux":    {without, "", false},
		"AppArmor":                    {without, "unconfined\n", false},
		"a policy":                    {with, "system_u:system_r:spc_t:s0\x00", true},
		"no policy":                   {with, "kernel\x00", false},
		"no policy, without the NUL":  {with, "kernel", false},
		"another file system's name":  {"nodev\tnoselinuxfs\n", "system_u:system_r:spc_t:s0\x00", false},
		"a kernel without attributes": {with, "", false},
	} {
		proc := fstest.MapFS{"filesystems": {Data: []byte(test.systems)}}
		if test.current != "" {
			proc["self/attr/current"] = &fstest.MapFile{Data: []byte(test.current)}
		}
		if got, err := SELinux(proc); got != test.want || err != nil {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if _, err := SELinux(fstest.MapFS{}); err == nil {
		t.Error("no error without /proc")
	}
}

// With SELinux, the kernel gets the context as one string with its commas. Without a
// context, it gets no such option: a kernel without SELinux rejects it.
func TestContextIsPassedToTheKernel(t *testing.T) {
	const context = "system_u:object_r:container_file_t:s0:c1,c2"
	sent := func(o Options) map[string]string {
		all := map[string]string{}
		err := o.configure(func(key, value string) error {
			all[key] = value
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	o := Options{Source: "csi.example", Size: 1 << 20, Inodes: 32}
	plain := map[string]string{"source": "csi.example", "size": "1048576", "nr_inodes": "32", "mode": "0755"}
	if got := sent(o); !maps.Equal(got, plain) {
		t.Errorf("without a context: %v", got)
	}
	o.SELinuxContext = context
	plain["context"] = context
	if got := sent(o); !maps.Equal(got, plain) {
		t.Errorf("with a context: %v", got)
	}
	refused := errors.New("refused")
	var keys []string
	err := o.configure(func(key, _ string) error {
		keys = append(keys, key)
		if key == "context" {
			return refused
		}
		return nil
	})
	if !errors.Is(err, refused) || !strings.Contains(err.Error(), `fsconfig context="`+context+`"`) {
		t.Errorf("the kernel refuses %v: %v", keys, err)
	}
	if !slices.Contains(keys, "context") {
		t.Error("the kernel was not asked")
	}
}
