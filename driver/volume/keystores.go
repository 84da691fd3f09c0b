package volume

import (
	"errors"
	"os"

	"github.com/flexstack/step-csi/driver/payload"
	"github.com/flexstack/step-csi/issuer"
)

// checkPassword rejects a Secret for the password that has no effect.
func (v *Volume) checkPassword() error {
	if !v.attributes.Files.HasKeyStore() && v.Password.Known() {
		return errors.New("nodePublishSecretRef: the Secret is for the password of a key store, and the volume has none; " +
			"set pkcs12-file, pkcs12-truststore-file, jks-file or jks-truststore-file, or leave out nodePublishSecretRef")
	}
	if _, named := v.Attributes["keystore-password-file"]; named && v.Password.Given() {
		return errors.New("keystore-password-file: the password of nodePublishSecretRef is not written to a file; leave out one of the two")
	}
	return nil
}

// keyStorePassword returns the password of the volume's key stores: the one that the pod has
// given; the generated one that is mounted; or a new one, at first or if the mounted one is
// damaged.
func (v *Volume) keyStorePassword(root *os.Root) payload.Password {
	switch {
	case !v.attributes.Files.HasKeyStore():
		return payload.Password{}
	case v.Password.Given():
		return v.Password
	}
	if password, err := payload.ReadPassword(root, v.attributes.Files.KeyStorePassword); err == nil {
		return password
	}
	return payload.GeneratePassword()
}

// errUnknownPassword means that the pod may have given the password, which only the kubelet
// knows after a restart.
var errUnknownPassword = errors.New("the password of the key stores is not known until the kubelet publishes the volume again")

// encodeMounted encodes the mounted certificate again, if there is one, with these roots.
func (v *Volume) encodeMounted(root *os.Root, roots issuer.Roots) ([]payload.File, error) {
	if v.IsFound() && v.attributes.Files.HasKeyStore() {
		if _, err := payload.ReadPassword(root, v.attributes.Files.KeyStorePassword); err != nil {
			return nil, errUnknownPassword
		}
	}
	if v.attributes.TrustOnly {
		return payload.EncodeTrust(roots, v.attributes, v.keyStorePassword(root))
	}
	set, err := payload.OpenSet(root)
	if err != nil {
		return nil, err
	}
	defer set.Close()
	chain, err := readChain(set, v.attributes.Files.Certificate)
	if err != nil {
		return nil, err
	}
	key, err := payload.ReadKey(set, v.attributes.Files.PrivateKey)
	if err != nil {
		return nil, err
	}
	return payload.Encode(&issuer.Credential{Chain: chain, Key: key, Roots: roots}, v.attributes, v.keyStorePassword(root))
}
