package host

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// header is the first line of each file that this package writes for others to read.
const header = "# Made by glance-dtn, which removes it when its change is undone. Do not edit it.\n"

// seal returns what a file of our own says: the header, a checksum, and text. What
// others change in it is seen by the checksum, whatever became of the undo record.
func seal(text string) string {
	return header + fmt.Sprintf("# sha256 %x\n", sha256.Sum256([]byte(text))) + text
}

// isOurs reports whether a file was made by seal, and perhaps edited since.
func isOurs(text string) bool { return strings.HasPrefix(text, header) }

// own returns what is in a file of our own; found is false where there is none. It
// fails where somebody else has written to it.
func (h *Host) own(name string) (text string, found bool, err error) {
	all, err := os.ReadFile(h.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	} else if err != nil {
		return "", false, err
	}
	text = string(all)
	_, body, _ := strings.Cut(strings.TrimPrefix(text, header), "\n")
	if seal(body) != text {
		return "", true, fmt.Errorf("%s is not as glance-dtn has written it, and stays as it is: copy what you need of it to a file of your own and remove it, then try again", name)
	}
	return text, true, nil
}
