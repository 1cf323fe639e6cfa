package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/glance-dtn/glance-dtn/internal/sealed"
)

// own returns what is in a file of our own; found is false where there is none. It
// fails where somebody else has written to it.
func (h *Host) own(name string) (text string, found bool, err error) {
	all, err := os.ReadFile(h.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	} else if err != nil {
		return "", false, err
	}
	if err := sealed.Check(string(all)); err != nil {
		return "", true, fmt.Errorf("%s %w", name, err)
	}
	return string(all), true, nil
}
