package attributes

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/agext/levenshtein"
)

// certManager is how the keys of cert-manager's csi-driver begin.
// See https://cert-manager.io/docs/usage/csi-driver/#supported-volume-attributes
const certManager = "csi.cert-manager.io/"

// renamed has the keys of cert-manager's csi-driver that are called differently
// here, beyond the part before the slash.
var renamed = map[string]string{
	"issuer-name":   "issuer",
	"key-algorithm": "key-type",
	"key-size":      "key-type",
}

// unknownKeys refuses keys that nobody reads. Their values are not told: one
// may be the password of a key store.
func unknownKeys(values map[string]string) (failed []error) {
	known := Keys()
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if !slices.Contains(known, key) {
			failed = append(failed, unknownKey(key))
		}
	}
	return failed
}

// unknownKey names the known key that was probably meant.
func unknownKey(key string) error {
	if _, plain, found := strings.Cut(key, "/"); found && slices.Contains(Keys(), plain) {
		return fmt.Errorf("%s: write %s, without the part before the slash", quote(key), plain)
	}
	if plain, found := strings.CutPrefix(key, certManager); found {
		if key, found := renamed[plain]; found {
			return fmt.Errorf("%s: write %s", quote(certManager+plain), key)
		}
		return fmt.Errorf("%s: there is nothing like it here; leave it out", quote(key))
	}
	likeness := func(known string) float64 { return levenshtein.Similarity(strings.ToLower(key), known, nil) }
	nearest := slices.MaxFunc(Keys(), func(a, b string) int { return cmp.Compare(likeness(a), likeness(b)) })
	if likeness(nearest) >= 0.6 {
		return fmt.Errorf("%s is not a volume attribute; %s is", quote(key), nearest)
	}
	return fmt.Errorf("%s is not a volume attribute; these are: %s", quote(key), strings.Join(Keys(), ", "))
}
