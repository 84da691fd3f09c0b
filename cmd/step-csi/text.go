package main

import (
	"bytes"
	"fmt"
	"os"
)

// readText reads a file that an administrator has written: the configuration, roots, a
// password or a token. It skips the byte-order mark that some editors put at the beginning.
// The errors have the path.
func readText(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	const utf8Mark, utf16LE, utf16BE = "\xef\xbb\xbf", "\xff\xfe", "\xfe\xff"
	data = bytes.TrimPrefix(data, []byte(utf8Mark))
	switch {
	case len(bytes.TrimSpace(data)) == 0:
		return nil, fmt.Errorf("%s is empty", path)
	case bytes.HasPrefix(data, []byte(utf16LE)) || bytes.HasPrefix(data, []byte(utf16BE)):
		return nil, fmt.Errorf("%s is in UTF-16, as PowerShell writes files by default; save it in UTF-8", path)
	}
	return data, nil
}
