// Package roottest opens directories for tests.
package roottest

import (
	"os"
	"testing"
)

// Open opens dir until the test has ended.
func Open(t testing.TB, dir string) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}
