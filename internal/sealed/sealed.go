// Package sealed marks the configuration files that this program writes for others to
// read, so that it never takes back what somebody else has written there.
package sealed

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
)

// Header is the first line of each file.
const Header = "# Made by glance-dtn, which removes it when its change is undone. Do not edit it.\n"

// ErrEdited says that somebody else has written to a file, whose name goes before it.
var ErrEdited = errors.New("is not as glance-dtn has written it, and stays as it is: copy what you need of it to a file of your own and remove it, then try again")

// Seal returns what a file says: the header, a checksum, and text. Lines that begin
// with # must be comments in it.
func Seal(text string) string {
	return Header + fmt.Sprintf("# sha256 %x\n", sha256.Sum256([]byte(text))) + text
}

// IsOurs reports whether a file was made by Seal, and perhaps edited since.
func IsOurs(file string) bool { return strings.HasPrefix(file, Header) }

// Check returns ErrEdited for a file that is not as Seal has made it.
func Check(file string) error {
	_, text, _ := strings.Cut(strings.TrimPrefix(file, Header), "\n")
	if Seal(text) != file {
		return ErrEdited
	}
	return nil
}
