package nfs

import (
	"fmt"
	"io"
	"strings"
)

// Bytes that must be written in octal: in exports(5), and in the lines of fstab(5)
// and proc(5), where quotes belong to the value.
const (
	exportsSpecial = " \t\n\r\v\f\\\"#"
	mountSpecial   = " \t\n\\#"
)

// escape writes each byte of special as a backslash and three octal digits.
func escape(s, special string) string {
	if !strings.ContainsAny(s, special) {
		return s
	}
	var b strings.Builder
	for i := range len(s) {
		if strings.IndexByte(special, s[i]) >= 0 {
			fmt.Fprintf(&b, `\%03o`, s[i])
		} else {
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

// unescape undoes escape. A backslash without three octal digits of one byte stands
// for itself, since some file systems do not escape it in their options.
func unescape(s string) string {
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	b := make([]byte, 0, len(s))
	for len(s) > 0 {
		if c, ok := octal(s); ok {
			b, s = append(b, c), s[4:]
		} else {
			b, s = append(b, s[0]), s[1:]
		}
	}
	return string(b)
}

// octal returns the byte that s begins with in octal.
func octal(s string) (c byte, ok bool) {
	if len(s) < 4 || s[0] != '\\' || s[1] > '3' {
		return 0, false
	}
	for _, d := range []byte(s[1:4]) {
		if d < '0' || d > '7' {
			return 0, false
		}
		c = c<<3 | (d - '0')
	}
	return c, true
}

// eachLine calls do with every line of r, without its line feed. An error of do
// ends it and is returned with the number of the line.
func eachLine(r io.Reader, do func(line string) error) error {
	text, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		if err := do(strings.TrimSuffix(line, "\n")); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
	}
	return nil
}

// fields splits at spaces and tabs, and at nothing else.
func fields(line string) []string {
	return strings.FieldsFunc(line, func(c rune) bool { return c == ' ' || c == '\t' })
}
