package keystore

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
)

const (
	// minPassword is the shortest password that Java's keytool accepts.
	minPassword = 6
	// MaxPassword is the longest password, in bytes. The readers have no limit below it.
	MaxPassword = 128
	// generated is the length of a generated password, which has 160 random bits.
	generated = 32
)

// GeneratePassword returns a random password of letters and digits.
func GeneratePassword() string { return (rand.Text() + rand.Text())[:generated] }

// CheckPassword returns an error unless all programs accept the password: Java accepts only
// printable ASCII for most encryptions. The error does not contain the password.
func CheckPassword(password string) error {
	switch {
	case len(password) < minPassword || len(password) > MaxPassword:
		return fmt.Errorf("it has %d bytes; a key store's password has %d to %d", len(password), minPassword, MaxPassword)
	case strings.HasSuffix(password, "\n"):
		return errors.New("it ends with a newline; write it without one, such as by printf or echo -n")
	case !isPrintableASCII(password):
		return errors.New("it has other characters than printable ASCII, which Java does not accept in a key store's password")
	}
	return nil
}
