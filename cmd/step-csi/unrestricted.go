package main

import (
	"context"
	"maps"
	"slices"
	"strings"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer/policy"
)

// unrestricted says which names the policy does not restrict, or returns an empty string.
func unrestricted(r policy.Rules) string {
	fields := policy.Unrestricted(r.Validations)
	if len(fields) == 0 {
		return ""
	}
	return "no validation mentions " + strings.Join(fields, ", ") + ", so any pod can have any value"
}

// warnUnrestricted warns about policies that do not restrict names. A list of validations
// replaces the default list: one about subject fields alone lets any pod have any name.
func (c *config) warnUnrestricted(ctx context.Context) {
	for _, name := range slices.Sorted(maps.Keys(c.issuers)) {
		i := c.issuers[name].file
		text := unrestricted(c.common.Of(i.Policy))
		if i.Provisioner.Type == typeRA || text == "" {
			continue
		}
		klog.FromContext(ctx).Info("Warning: "+text+"; the validations of the configuration replace the default policy: add its validations", "issuer", name)
	}
}
