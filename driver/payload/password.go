package payload

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/flexstack/step-csi/driver/keystore"
)

// Password is the password of a volume's key stores. It does not print. The zero value is
// none.
type Password struct {
	text string
	// given means that the pod has a Secret for the password, which may lack it.
	given bool
}

// secretKey is the key of the password in the pod's Secret.
const secretKey = "keystore-password"

// kubeletPrefix is the prefix of what the kubelet itself adds to the secrets of a request: the
// pod's tokens. No Secret has such keys.
const kubeletPrefix = "csi.storage.k8s.io/"

// PasswordOf returns the password among the secrets of a request, which are the contents of
// the Secret that the pod names in nodePublishSecretRef.
func PasswordOf(secrets map[string]string) (p Password) {
	for key, value := range secrets {
		if !strings.HasPrefix(key, kubeletPrefix) {
			p.given = true
		}
		if key == secretKey {
			p.text = value
		}
	}
	return p
}

// Given tells whether the pod has a Secret for the password. No file gets the password then.
func (p Password) Given() bool { return p.given }

// OfSecret returns the password as that of a Secret, which lacks it if there is none.
func (p Password) OfSecret() Password { return Password{p.text, true} }

// Check returns an error unless key stores can have the password, if the pod has given one.
func (p Password) Check() error {
	if !p.given {
		return nil
	}
	if p.text == "" {
		return errors.New("nodePublishSecretRef: the Secret has no key " + secretKey + ", or it is empty; add it, or leave out nodePublishSecretRef")
	}
	if err := keystore.CheckPassword(p.text); err != nil {
		return fmt.Errorf("nodePublishSecretRef: the key %s of the Secret is not a password for key stores: %w", secretKey, err)
	}
	return nil
}

// GeneratePassword returns a random password.
func GeneratePassword() Password { return Password{text: keystore.GeneratePassword()} }

// ReadPassword reads a generated password from the set in use.
func ReadPassword(root *os.Root, name string) (Password, error) {
	data, err := readFile(root, DataLink+"/"+name, keystore.MaxPassword)
	if err != nil {
		return Password{}, err
	}
	defer clear(data)
	if err := keystore.CheckPassword(string(data)); err != nil {
		return Password{}, fmt.Errorf("%s: %w", name, err)
	}
	return Password{text: string(data)}, nil
}

// Known tells whether there is a password.
func (p Password) Known() bool { return p.text != "" }

// Format keeps the password out of logs and error messages, whatever the verb.
func (Password) Format(s fmt.State, _ rune) { _, _ = s.Write([]byte("[password]")) }

// MarshalJSON keeps the password out of structured logs and records.
func (Password) MarshalJSON() ([]byte, error) { return []byte(`"[password]"`), nil }

// MarshalLog keeps the password out of what logr prints.
func (Password) MarshalLog() any { return "[password]" }
