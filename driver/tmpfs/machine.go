//go:build 386 || arm || mips || mipsle || mips64 || ppc64 || s390x

package tmpfs

// This package works with the kernel's structures on machines of 64 bits that are
// little-endian, such as amd64 and arm64. The build fails on others, with this name.
var _ = stepCSINeedsA64BitLittleEndianMachine
