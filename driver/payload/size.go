package payload

import (
	"crypto/x509"

	"github.com/flexstack/step-csi/driver/attributes"
)

// Size returns how much of a tmpfs a set of these files takes: whole pages of memory, and inodes
// of files and directories.
func Size(files []File) (bytes int64, inodes int) {
	inodes = 1
	directory := ""
	for _, file := range files {
		bytes += pages(len(file.Data))
		inodes++
		if name := file.visibleName(); name != file.Name && name != directory {
			directory = name
			inodes++
		}
	}
	return bytes, inodes
}

// TrustSize estimates Size for the files of these roots, without making them: keystores take
// long.
func TrustSize(roots []*x509.Certificate, a attributes.Attributes) (bytes int64, inodes int) {
	inodes, all, each := 1, 0, int64(0)
	for _, root := range roots {
		pem := len(root.Raw)*7/5 + 64 // a third more, newlines, and two lines
		all, each = all+pem, each+pages(pem)
	}
	for _, f := range formats {
		switch {
		case !f.trust || f.secret || f.name(a) == "":
		case f.directory != nil:
			bytes, inodes = bytes+each, inodes+1+len(roots)
		default:
			bytes, inodes = bytes+pages(all), inodes+1
		}
	}
	return bytes, inodes
}

// pages returns the memory that a file of so many bytes takes.
func pages(bytes int) int64 {
	const page = 4 << 10
	return (int64(bytes) + page - 1) / page * page
}
