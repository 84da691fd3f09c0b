package attributes

import (
	"cmp"
	"fmt"
	"io/fs"
)

// finishModes sets the modes that the user has not set. Without a group and an owner, every
// user can read the files: the plugin does not know as which user the containers run.
func (a *Attributes) finishModes() {
	usual, usualKey := fs.FileMode(0o444), fs.FileMode(0o444)
	switch {
	case a.Group != nil:
		usual, usualKey = 0o440, 0o440
	case a.Owner != 0:
		usualKey = 0o400
	}
	a.PrivateKeyMode = cmp.Or(a.PrivateKeyMode, a.Mode, usualKey)
	a.Mode = cmp.Or(a.Mode, usual)
}

// ModeWarning returns a warning if only root can be expected to read some of the files, and
// what to change, or an empty string. The files belong to root, unless the user has set
// another owner, so other users read them by the volume's group, or without a group as
// everybody. The plugin does not know as which user an application runs: for root, such a
// mode is right.
func (a Attributes) ModeWarning() string {
	if a.Owner != 0 {
		return "" // the owner can read them
	}
	if warning := a.modeWarning("file-mode", "the files", a.Mode); warning != "" {
		return warning
	}
	return a.modeWarning("privatekey-mode", "the private key", a.PrivateKeyMode)
}

func (a Attributes) modeWarning(key, files string, mode fs.FileMode) string {
	switch {
	case a.Group != nil && mode&0o040 == 0:
		return fmt.Sprintf(`%s: "%04o" lets only root read %s (owner root, group %d); `+
			`if the application runs as another user, set %[1]s: "0440", or leave out %[1]s`, key, mode, files, *a.Group)
	case a.Group == nil && mode&0o004 == 0:
		readers := "only root"
		if mode&0o040 != 0 {
			readers = "only root and the group 0"
		}
		return fmt.Sprintf(`%s: "%04o" lets %s read %s, because the pod has no fsGroup; `+
			`if the application runs as another user, set owner-uid to this user, or fsGroup in the pod's securityContext and %[1]s: "0440", or leave out %[1]s`, key, mode, readers, files)
	}
	return ""
}
