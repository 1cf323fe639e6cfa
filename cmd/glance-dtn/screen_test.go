package main

import (
	"bytes"
	"fmt"
	"testing"
)

func TestScreenShowsNoControlCharacters(t *testing.T) {
	for in, want := range map[string]string{
		"ubuntu 24.04 ü →\n\tx":     "ubuntu 24.04 ü →\n\tx",
		"\x1b[32mverified\x1b[0m":   "\x1b[32mverified\x1b[0m",
		"x\x1b]0;title\ay":          "x\uFFFD]0;title\uFFFDy",
		"x\x1b[2J\x1b[1;1Hy\rz\x7f": "x\uFFFD[2J\uFFFD[1;1Hy\uFFFDz\uFFFD",
		"x\u009b2Jy":                "x\uFFFD2Jy",
	} {
		var b bytes.Buffer
		if n, err := fmt.Fprint(screen{&b}, in); err != nil || n != len(in) || b.String() != want {
			t.Errorf("%q is shown as %q (%d, %v), want %q", in, b.String(), n, err, want)
		}
	}
}
