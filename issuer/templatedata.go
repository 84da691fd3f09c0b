package issuer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"unicode/utf8"

	"github.com/flexstack/step-csi/issuer/names"
)

const (
	// MaxTemplateData limits template data, in bytes of JSON.
	MaxTemplateData = 4 << 10
	// maxTemplateDepth limits how deep objects and lists are in each other.
	maxTemplateDepth = 8
	// maxTemplateNumber is the largest integer that no other one is rounded to as a float64,
	// which CEL and X.509 templates read.
	maxTemplateNumber = 1<<53 - 1
)

// templateSubject is the key of the subject fields in what an X.509 template reads. It
// belongs to step-csi: what the pod asks for there, the policy has seen.
const templateSubject = "subject"

// TemplateData is a JSON object of a pod for the X.509 template of the CA's provisioner, in
// one spelling: no blanks, sorted keys. So the policy and the template read the same.
// The zero value means that there is none.
type TemplateData struct{ templateData string }

// String returns the JSON; "" if there is none.
func (d TemplateData) String() string { return d.templateData }

// ParseTemplateData parses a JSON object. It rejects what two parsers may read
// differently.
func ParseTemplateData(text string) (TemplateData, error) {
	switch {
	case len(text) > MaxTemplateData:
		return TemplateData{}, fmt.Errorf("the JSON has %d bytes; the limit is %d", len(text), MaxTemplateData)
	case !utf8.ValidString(text):
		return TemplateData{}, errors.New("the JSON is not valid UTF-8")
	}
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	value, err := decodeValue(decoder, 1)
	if err == nil {
		if _, end := decoder.Token(); end != io.EOF {
			err = errors.New("there is more after the first value")
		}
	}
	object, isObject := value.(map[string]any)
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		err = errors.New("the JSON ends too early")
	case err == nil && !isObject:
		err = errors.New("the JSON is not an object")
	}
	if err != nil {
		return TemplateData{}, fmt.Errorf(`%s: %w; write a JSON object, such as {"team": "shop"}`, names.Quote(text), err)
	}
	for key := range object {
		if strings.EqualFold(key, templateSubject) {
			return TemplateData{}, fmt.Errorf("%s: the key %s is reserved for the subject fields, which have attributes of their own, such as organizations",
				names.Quote(text), names.Quote(key))
		}
	}
	encoded := encodeJSON(object)
	if len(encoded) > MaxTemplateData {
		return TemplateData{}, fmt.Errorf("the JSON has %d bytes when it is encoded again; the limit is %d", len(encoded), MaxTemplateData)
	}
	return TemplateData{encoded}, nil
}

// decodeValue decodes the next JSON value, which is at this depth.
func decodeValue(decoder *json.Decoder, depth int) (any, error) {
	token, err := decoder.Token()
	if err != nil {
		return nil, err
	}
	switch token := token.(type) {
	case json.Number:
		number, err := token.Float64()
		if err != nil || math.Abs(number) > maxTemplateNumber {
			return nil, fmt.Errorf("the number %s is too large; write it as a text, in quotes", names.Quote(token.String()))
		}
		return number, nil
	case json.Delim:
		if depth > maxTemplateDepth {
			return nil, fmt.Errorf("objects and lists are more than %d levels deep", maxTemplateDepth)
		}
		if token == '{' {
			return decodeObject(decoder, depth)
		}
		list := []any{}
		for decoder.More() {
			value, err := decodeValue(decoder, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, value)
		}
		_, err := decoder.Token()
		return list, err
	}
	return token, nil
}

// decodeObject decodes the rest of an object.
func decodeObject(decoder *json.Decoder, depth int) (any, error) {
	object := map[string]any{}
	for decoder.More() {
		token, err := decoder.Token()
		if err != nil {
			return nil, err
		}
		key, _ := token.(string) // the Decoder accepts no other keys
		if _, repeated := object[key]; repeated {
			return nil, fmt.Errorf("the key %s occurs twice", names.Quote(key))
		}
		if object[key], err = decodeValue(decoder, depth+1); err != nil {
			return nil, err
		}
	}
	_, err := decoder.Token()
	return object, err
}

// Object returns the decoded JSON; an empty object if there is none.
func (d TemplateData) Object() map[string]any {
	object := map[string]any{}
	_ = json.Unmarshal([]byte(d.templateData), &object) // ParseTemplateData has encoded it
	return object
}

// TemplateInput returns what the X.509 template of the CA's provisioner reads for the
// request, in JSON: the pod's template data, and the subject fields with the names that
// they have in such a template. It is nil if there are none.
//
//	{"subject": {"organization": ["Acme"]}, "team": "shop"}
func (r Request) TemplateInput() []byte {
	subject := map[string][]string{}
	for _, field := range names.SubjectFields() {
		if values := *field.Of(&r.Subject); len(values) > 0 {
			subject[field.Template] = names.Texts(values)
		}
	}
	if len(subject) == 0 && r.TemplateData == (TemplateData{}) {
		return nil
	}
	object := r.TemplateData.Object()
	if len(subject) > 0 {
		object[templateSubject] = subject
	}
	return []byte(encodeJSON(object))
}

// encodeJSON encodes decoded JSON, with the keys sorted.
func encodeJSON(object map[string]any) string {
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(object) // decoded JSON can always be encoded
	return strings.TrimSuffix(buffer.String(), "\n")
}
