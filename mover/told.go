package mover

import (
	"slices"
	"strings"
	"unicode"
)

// maxTold is how many bytes are taken of what another DTN says of a failure: it is kept with
// the transfer, and becomes part of a job's history.
const maxTold = 1 << 10

// Told is a text of another DTN as it may be kept, logged and shown: its beginning, in
// printable characters.
func Told(text string) string {
	if len(text) > maxTold {
		text = strings.Clone(text[:maxTold]) // else all of it stays in memory
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, ""))
}

var codes = []Code{CodeOther, CodeTicket, CodeSource, CodeContent, CodeSpace, CodeName, CodeAuth}

// Known returns c, CodeOther where it is none of the codes, as one of another DTN need not be.
func (c Code) Known() Code {
	if slices.Contains(codes, c) {
		return c
	}
	return CodeOther
}
