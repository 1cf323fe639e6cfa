package lab

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Touch takes n bytes of memory, or half of what is free if that is less, writes to all
// of it and gives it back, so that what is measured next finds it at hand: the host of a
// virtual machine takes free memory back, and what is touched for the first time after
// that costs four times as much.
func Touch(t testing.TB, n int64) {
	t.Helper()
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		t.Fatal(err)
	}
	size := int(min(n, int64(info.Freeram)*int64(info.Unit)/2)) // what is free and no page of a file
	memory, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < size; i += os.Getpagesize() {
		memory[i] = 1
	}
	if err := unix.Munmap(memory); err != nil {
		t.Fatal(err)
	}
}
