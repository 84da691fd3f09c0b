package attributes

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/agext/levenshtein"

	"github.com/flexstack/step-csi/issuer/names"
)

// certManager is the prefix of the keys of cert-manager's csi-driver.
// See https://cert-manager.io/docs/usage/csi-driver/#supported-volume-attributes
const certManager = "csi.cert-manager.io/"

// renamed maps keys of cert-manager's csi-driver, without the prefix, to keys with
// another name here.
var renamed = map[string]string{
	"issuer-name":   "issuer",
	"key-algorithm": "key-type",
	"key-size":      "key-type",
}

// unknownKeys rejects keys that the driver does not know. The errors leave out
// their values: one may be the password of a key store.
func unknownKeys(values map[string]string) (failed []error) {
	known := Keys()
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if !slices.Contains(known, key) {
			failed = append(failed, unknownKey(key))
		}
	}
	return failed
}

// unknownKey suggests the known key that the user probably meant.
func unknownKey(key string) error {
	if _, plain, found := strings.Cut(key, "/"); found && slices.Contains(Keys(), plain) {
		return fmt.Errorf("%s: write %s, without the part before the slash", names.Quote(key), plain)
	}
	if plain, found := strings.CutPrefix(key, certManager); found {
		if key, found := renamed[plain]; found {
			return fmt.Errorf("%s: write %s", names.Quote(certManager+plain), key)
		}
		return fmt.Errorf("%s: this driver has no such attribute; leave it out", names.Quote(key))
	}
	likeness := func(known string) float64 { return levenshtein.Similarity(strings.ToLower(key), known, nil) }
	nearest := slices.MaxFunc(Keys(), func(a, b string) int { return cmp.Compare(likeness(a), likeness(b)) })
	if likeness(nearest) >= 0.6 {
		return fmt.Errorf("%s is not a volume attribute; %s is", names.Quote(key), nearest)
	}
	return fmt.Errorf("%s is not a volume attribute; these are: %s", names.Quote(key), strings.Join(Keys(), ", "))
}
