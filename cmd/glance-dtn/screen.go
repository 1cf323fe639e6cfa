package main

import (
	"bytes"
	"io"
	"regexp"
)

// screen is a terminal, or what may be shown on one. Control characters, which names and
// reasons from elsewhere may hold, do not reach it, but for line ends, tabs and colours.
// One Write is one text.
type screen struct{ io.Writer }

func (s screen) Write(p []byte) (int, error) {
	if _, err := s.Writer.Write(harmless(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// behind returns what a screen writes to, for those who move the cursor.
func behind(w io.Writer) io.Writer {
	if s, ok := w.(screen); ok {
		return s.Writer
	}
	return w
}

// unquoting leaves out the quotes that name a flag's value in its usage, which help
// understands and completion does not.
type unquoting struct{ io.Writer }

func (u unquoting) Write(p []byte) (int, error) {
	if _, err := u.Writer.Write(bytes.ReplaceAll(p, []byte("`"), nil)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// controls are the control characters of ECMA-48, C0 and C1; select graphic rendition,
// which colours, is taken as one.
var controls = regexp.MustCompile(`\x1b\[[0-9;]*m|[\x00-\x08\x0b-\x1f\x7f\x{80}-\x{9f}]`)

func harmless(text []byte) []byte {
	return controls.ReplaceAllFunc(text, func(m []byte) []byte {
		if m[len(m)-1] == 'm' {
			return m
		}
		return []byte("\uFFFD")
	})
}
