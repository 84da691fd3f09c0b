package payload

import (
	"bytes"
	"crypto/sha1"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// subjectHash is the hash of a certificate's subject, by which OpenSSL 1.0 and later search
// for the certificate in a directory. It is X509_NAME_hash_ex in
// https://github.com/openssl/openssl/blob/master/crypto/x509/x509_cmp.c: the first bytes of the
// SHA-1 of the canonical encoding of the name. It protects nothing.
func subjectHash(rawSubject []byte) (uint32, error) {
	canonical, err := canonicalName(rawSubject)
	if err != nil {
		return 0, fmt.Errorf("the subject of a root cannot be hashed as OpenSSL does: %w", err)
	}
	sum := sha1.Sum(canonical)
	return binary.LittleEndian.Uint32(sum[:]), nil
}

var errMalformedName = errors.New("it is not a name in DER")

// canonicalName returns the canonical encoding of a name. It has the relative names one after
// the other, without the tag and the length of the sequence. It is x509_name_canon in
// https://github.com/openssl/openssl/blob/master/crypto/x509/x_name.c.
func canonicalName(rawSubject []byte) ([]byte, error) {
	input, sequence := cryptobyte.String(rawSubject), cryptobyte.String(nil)
	if !input.ReadASN1(&sequence, cbasn1.SEQUENCE) || !input.Empty() {
		return nil, errMalformedName
	}
	var canonical cryptobyte.Builder
	for !sequence.Empty() {
		var set cryptobyte.String
		if !sequence.ReadASN1(&set, cbasn1.SET) {
			return nil, errMalformedName
		}
		var attributes [][]byte
		for !set.Empty() {
			attribute, err := canonicalAttribute(&set)
			if err != nil {
				return nil, err
			}
			attributes = append(attributes, attribute)
		}
		slices.SortFunc(attributes, bytes.Compare) // the canonical values may have another order than the values
		canonical.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
			for _, attribute := range attributes {
				b.AddBytes(attribute)
			}
		})
	}
	return canonical.Bytes()
}

// canonicalAttribute reads an attribute from a relative name, and returns its canonical
// encoding.
func canonicalAttribute(set *cryptobyte.String) ([]byte, error) {
	var attribute, value cryptobyte.String
	var kind asn1.ObjectIdentifier
	if !set.ReadASN1(&attribute, cbasn1.SEQUENCE) {
		return nil, errMalformedName
	}
	typeAndValue := attribute
	var tag cbasn1.Tag
	if !attribute.ReadASN1ObjectIdentifier(&kind) || !attribute.ReadAnyASN1Element(&value, &tag) || !attribute.Empty() {
		return nil, errMalformedName
	}
	encodedKind := typeAndValue[:len(typeAndValue)-len(value)]
	text, isText, err := canonicalText(value, tag)
	if err != nil {
		return nil, err
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(encodedKind)
		if !isText {
			b.AddBytes(value)
			return
		}
		b.AddASN1(cbasn1.UTF8String, func(b *cryptobyte.Builder) { b.AddBytes(text) })
	})
	return b.Bytes()
}

const bmpString = cbasn1.Tag(30)

// canonicalText returns the text of a string type in UTF-8, in lower case as far as it is
// ASCII, and with single blanks. Other types stay as they are. It is asn1_string_canon there,
// which also converts VisibleString and UniversalString: crypto/x509 rejects these.
func canonicalText(element cryptobyte.String, tag cbasn1.Tag) (text []byte, isText bool, err error) {
	var value cryptobyte.String
	if !element.ReadASN1(&value, tag) {
		return nil, false, errMalformedName
	}
	switch tag {
	case cbasn1.UTF8String:
		if !utf8.Valid(value) {
			err = errors.New("a UTF8String is not UTF-8")
		}
		text = slices.Clone(value)
	case cbasn1.PrintableString, cbasn1.T61String, cbasn1.IA5String: // T61String as ISO 8859-1
		for _, c := range value {
			text = utf8.AppendRune(text, rune(c))
		}
	case bmpString:
		text, err = bmpText(value)
	default:
		return nil, false, nil
	}
	return foldedText(text), true, err
}

// bmpText converts characters of two bytes. UTF-16 surrogates are no characters.
func bmpText(value []byte) (text []byte, err error) {
	if len(value)%2 != 0 {
		return nil, errors.New("a BMPString ends within a character")
	}
	for c := range slices.Chunk(value, 2) {
		r := rune(binary.BigEndian.Uint16(c))
		if utf16.IsSurrogate(r) {
			return nil, errors.New("a BMPString has an invalid character")
		}
		text = utf8.AppendRune(text, r)
	}
	return text, nil
}

// foldedText cuts off white space at both ends, and makes a blank of that in between.
func foldedText(text []byte) (folded []byte) {
	const space = " \t\n\v\f\r"
	for i, c := range bytes.Trim(text, space) {
		switch {
		case bytes.IndexByte([]byte(space), c) < 0:
			if 'A' <= c && c <= 'Z' {
				c += 'a' - 'A'
			}
			folded = append(folded, c)
		case i > 0 && folded[len(folded)-1] != ' ':
			folded = append(folded, ' ')
		}
	}
	return folded
}
