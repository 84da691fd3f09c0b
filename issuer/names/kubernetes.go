package names

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// CheckLabel checks a name that Kubernetes validates as a DNS label, such as that
// of a namespace. UIDs have this form, too.
func CheckLabel(text string) error { return kubernetesError(text, validation.IsDNS1123Label(text)) }

// CheckSubdomain checks a name that Kubernetes validates as a DNS subdomain, such
// as that of a pod or a service account. Its labels may be longer than those of
// DNS names.
func CheckSubdomain(text string) error {
	return kubernetesError(text, validation.IsDNS1123Subdomain(text))
}

func kubernetesError(text string, problems []string) error {
	if len(problems) == 0 {
		return nil
	}
	return fmt.Errorf("%s is not a Kubernetes name: %s", Quote(text), strings.Join(problems, ", and "))
}
