package attributes

import (
	"fmt"
	"io/fs"
	"math"
	"strconv"
	"strings"

	"github.com/flexstack/step-csi/issuer/names"
)

// maxFileName is NAME_MAX of Linux, in bytes.
const maxFileName = 255

// setFile sets the name of a file. Names that begin with two dots are reserved for
// the driver.
func setFile(field func(*parser) *string) func(*parser, string) error {
	return func(p *parser, name string) error {
		switch {
		case strings.Contains(name, "/") || name == ".":
			return fmt.Errorf("%s is not a plain file name; leave out the directory", names.Quote(name))
		case strings.HasPrefix(name, ".."):
			return fmt.Errorf("%s begins with two dots; the driver uses such names itself", names.Quote(name))
		case !names.IsPrintable(name):
			return fmt.Errorf("%s contains characters that are not printable", names.Quote(name))
		case len(name) > maxFileName:
			return fmt.Errorf("%s has %d bytes; a file name has at most %d", names.Quote(name), len(name), maxFileName)
		}
		*field(p) = name
		return nil
	}
}

func (p *parser) setGroup(value string) error {
	group, err := parseGroup(value)
	p.result.Group = group
	return err
}

// parseGroup accepts the range that Kubernetes accepts as an fsGroup. The kernel
// accepts higher ids, but no pod can be in such a group.
func parseGroup(value string) (*int, error) {
	group, err := strconv.Atoi(value)
	if err != nil || group < 0 || group > math.MaxInt32 || strconv.Itoa(group) != value {
		return nil, fmt.Errorf("%s is not a group ID from 0 to %d", names.Quote(value), math.MaxInt32)
	}
	return &group, nil
}

// setMode accepts only bits for reading: the volume is read-only, and no file in it
// is a program.
func (p *parser) setMode(value string) error {
	mode, err := strconv.ParseUint(value, 8, 32)
	if err != nil || mode&0o444 != mode || mode&0o400 == 0 {
		return fmt.Errorf("%s is not an octal mode that lets the owner read and nobody write or execute, such as 0440", names.Quote(value))
	}
	p.result.Mode = fs.FileMode(mode)
	return nil
}

func (p *parser) finishFiles() error {
	r := &p.result
	for _, pair := range [][4]string{
		{"certificate-file", r.CertificateFile, "privatekey-file", r.PrivateKeyFile},
		{"certificate-file", r.CertificateFile, "ca-file", r.CAFile},
		{"privatekey-file", r.PrivateKeyFile, "ca-file", r.CAFile},
	} {
		if pair[1] == pair[3] {
			return fmt.Errorf("%s and %s are both %s; give them different names", pair[0], pair[2], names.Quote(pair[1]))
		}
	}
	if r.Group == nil && p.mountGroup != "" {
		group, err := parseGroup(p.mountGroup)
		if err != nil {
			return fmt.Errorf("volume_mount_group: %w", err)
		}
		r.Group = group
	}
	if r.Mode == 0 {
		r.Mode = 0o444
		if r.Group != nil {
			r.Mode = 0o440
		}
	}
	return nil
}
