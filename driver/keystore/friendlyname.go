package keystore

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"hash"
)

// The structures of RFC 7292, section 4, as far as nameKey changes them.
type (
	pfx struct {
		Version  int
		AuthSafe contentInfo
		MacData  macData
	}
	contentInfo struct {
		ContentType asn1.ObjectIdentifier
		Content     asn1.RawValue `asn1:"tag:0,explicit"`
	}
	safeBag struct {
		ID         asn1.ObjectIdentifier
		Value      asn1.RawValue
		Attributes []attribute `asn1:"set,optional"`
	}
	attribute struct {
		ID     asn1.ObjectIdentifier
		Values []asn1.RawValue `asn1:"set"`
	}
	macData struct {
		Mac struct {
			Algorithm pkix.AlgorithmIdentifier
			Digest    []byte
		}
		Salt       []byte
		Iterations int
	}
)

var (
	oidFriendlyName = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 20}
	oidSHA1         = asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}
	oidSHA256       = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
)

// nameKey adds the attribute friendlyName to the private key of a PKCS#12 store, which
// go-pkcs12 does not. Java takes the alias of a key from it, and calls the key "1" without it.
// The key's bag is in the last part of the store. The key in it is encrypted; its attributes
// are not.
func nameKey(store []byte, alias, password string) ([]byte, error) {
	var p pfx
	var parts []contentInfo
	var bags []safeBag
	if err := unmarshalAll(store, &p); err != nil {
		return nil, err
	}
	if err := unmarshalData(p.AuthSafe, &parts); err != nil {
		return nil, err
	}
	keys := &parts[len(parts)-1]
	if err := unmarshalData(*keys, &bags); err != nil {
		return nil, err
	}
	name, err := asn1.Marshal(asn1.RawValue{Tag: asn1.TagBMPString, Bytes: bmpString(alias)})
	if err != nil {
		return nil, err
	}
	bags[0].Attributes = append(bags[0].Attributes, attribute{oidFriendlyName, []asn1.RawValue{{FullBytes: name}}})
	if err := marshalData(keys, bags); err != nil {
		return nil, err
	}
	if err := marshalData(&p.AuthSafe, parts); err != nil {
		return nil, err
	}
	var authenticated []byte
	if err := unmarshalAll(p.AuthSafe.Content.Bytes, &authenticated); err != nil {
		return nil, err
	}
	if p.MacData.Mac.Digest, err = mac(p.MacData, authenticated, password); err != nil {
		return nil, err
	}
	return asn1.Marshal(p)
}

// unmarshalData decodes the content of the type data: DER within an octet string.
func unmarshalData(c contentInfo, value any) error {
	var data []byte
	if err := unmarshalAll(c.Content.Bytes, &data); err != nil {
		return err
	}
	return unmarshalAll(data, value)
}

// marshalData undoes unmarshalData.
func marshalData(c *contentInfo, value any) error {
	data, err := asn1.Marshal(value)
	if err != nil {
		return err
	}
	if data, err = asn1.Marshal(data); err != nil {
		return err
	}
	c.Content = asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: data}
	return nil
}

func unmarshalAll(data []byte, value any) error {
	rest, err := asn1.Unmarshal(data, value)
	if err == nil && len(rest) > 0 {
		err = errors.New("data after the end of a structure")
	}
	return err
}

// mac authenticates a store. The key of the HMAC is derived as in RFC 7292, appendix B.2. It
// has the length of one hash, so that the first block of the derivation is the whole key.
func mac(m macData, message []byte, password string) ([]byte, error) {
	var newHash func() hash.Hash
	switch {
	case m.Mac.Algorithm.Algorithm.Equal(oidSHA256):
		newHash = sha256.New
	case m.Mac.Algorithm.Algorithm.Equal(oidSHA1):
		newHash = sha1.New
	default:
		return nil, fmt.Errorf("unknown MAC %s", m.Mac.Algorithm.Algorithm)
	}
	h := newHash()
	const forMAC = 3 // the purpose of the derived key
	h.Write(bytes.Repeat([]byte{forMAC}, h.BlockSize()))
	h.Write(filled(m.Salt, h.BlockSize()))
	secret := filled(append(bmpString(password), 0, 0), h.BlockSize())
	defer clear(secret)
	h.Write(secret)
	key := h.Sum(nil)
	for range m.Iterations - 1 {
		h.Reset()
		h.Write(key)
		key = h.Sum(key[:0])
	}
	defer clear(key)
	authentication := hmac.New(newHash, key)
	authentication.Write(message)
	return authentication.Sum(nil), nil
}

// filled repeats the data up to a multiple of the block size.
func filled(data []byte, block int) []byte {
	length := (len(data) + block - 1) / block * block
	return bytes.Repeat(data, length/len(data)+1)[:length]
}

// bmpString encodes ASCII in two bytes per character, big-endian.
func bmpString(text string) []byte {
	encoded := make([]byte, 0, 2*len(text)+2)
	for i := range len(text) {
		encoded = append(encoded, 0, text[i])
	}
	return encoded
}
