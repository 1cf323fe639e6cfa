// Package disk tells where the parts of a file are, and moves them: a hole is nowhere, what
// was written is in the page cache, and on the disk once the kernel has brought it there.
// None of it changes what a reader sees, but for Punch. Another kernel than Linux tells
// nothing, and does it by itself.
package disk
