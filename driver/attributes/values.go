package attributes

import (
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/flexstack/step-csi/issuer/names"
)

func oneOf[T ~string](allowed ...T) func(string) (T, error) {
	return func(value string) (T, error) {
		if slices.Contains(allowed, T(value)) {
			return T(value), nil
		}
		var texts []string
		for _, a := range allowed {
			texts = append(texts, string(a))
		}
		return "", fmt.Errorf("%s is not one of %s", names.Quote(value), strings.Join(texts, ", "))
	}
}

func parseBool(value string) (bool, error) {
	value, err := oneOf("true", "false")(value)
	return value == "true", err
}

func parseDuration(value string) (time.Duration, error) {
	d, err := time.ParseDuration(value)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%s is not a duration above zero, such as 24h or 90m", names.Quote(value))
	}
	return d, nil
}

// maxFileName is NAME_MAX of Linux, in bytes.
const maxFileName = 255

// parseFileName rejects names that begin with two dots: they are reserved for the
// driver. A user who writes "true" wants the file, but has not named it.
func parseFileName(name string) (string, error) {
	switch {
	case name == "true" || name == "false":
		return "", fmt.Errorf("%s is not a file name: write a name, or leave out the attribute", names.Quote(name))
	case strings.Contains(name, "/") || name == ".":
		return "", fmt.Errorf("%s is not a plain file name; leave out the directory", names.Quote(name))
	case strings.HasPrefix(name, ".."):
		return "", fmt.Errorf("%s begins with two dots; the driver uses such names itself", names.Quote(name))
	case !names.IsPrintable(name):
		return "", fmt.Errorf("%s contains characters that are not printable", names.Quote(name))
	case len(name) > maxFileName:
		return "", fmt.Errorf("%s has %d bytes; a file name has at most %d", names.Quote(name), len(name), maxFileName)
	}
	return name, nil
}

// parseID returns a parser of user or group IDs. It accepts the range that Kubernetes accepts
// as runAsUser and fsGroup. The kernel accepts higher IDs, but no pod can have them.
func parseID(kind string) func(string) (int, error) {
	return func(value string) (int, error) {
		id, err := strconv.Atoi(value)
		if err != nil || id < 0 || id > math.MaxInt32 || strconv.Itoa(id) != value {
			return 0, fmt.Errorf("%s is not a %s ID from 0 to %d", names.Quote(value), kind, math.MaxInt32)
		}
		return id, nil
	}
}

func parseGroup(value string) (*int, error) {
	group, err := parseID("group")(value)
	if err != nil {
		return nil, err
	}
	return &group, nil
}

// parseMode accepts bits for reading, because no file in the volume is a program. It accepts
// the owner's permission to write, because 0600 and 0640 are what people write for keys: the
// mount is read-only.
func parseMode(value string) (fs.FileMode, error) {
	mode, err := strconv.ParseUint(value, 8, 32)
	if err != nil || mode&^0o644 != 0 || mode&0o400 == 0 {
		return 0, fmt.Errorf("%s is not a mode of files in this volume: write it in octal; the owner must be able to read, only the owner may write, and no user may execute, such as 0440",
			names.Quote(value))
	}
	return fs.FileMode(mode), nil
}
