package attributes

import "fmt"

// ModeWarning returns a warning if only root can be expected to read the files, and what
// to change, or an empty string. The files belong to root, so other users read them by the
// volume's group, or without a group as everybody. The plugin does not know as which user
// an application runs: for root, such a mode is right.
func (a Attributes) ModeWarning() string {
	switch {
	case a.Group != nil && a.Mode&0o040 == 0:
		return fmt.Sprintf(`file-mode: "%04o" lets only root read the files, which belong to root and the group %d; `+
			`if the application runs as another user, set file-mode: "0440", or leave out file-mode`, a.Mode, *a.Group)
	case a.Group == nil && a.Mode&0o004 == 0:
		readers := "only root"
		if a.Mode&0o040 != 0 {
			readers = "only root and the group 0"
		}
		return fmt.Sprintf(`file-mode: "%04o" lets %s read the files, because the pod has no fsGroup; `+
			`if the application runs as another user, set fsGroup in the pod's securityContext and file-mode: "0440", or leave out file-mode`, a.Mode, readers)
	}
	return ""
}
