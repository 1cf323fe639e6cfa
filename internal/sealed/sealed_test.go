package sealed_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/glance-dtn/glance-dtn/internal/sealed"
)

func TestAnEditIsSeen(t *testing.T) {
	for _, text := range []string{"", "a = 1\n", "# a comment\na = 1\n", "no newline"} {
		file := sealed.Seal(text)
		if err := sealed.Check(file); err != nil || !sealed.IsOurs(file) {
			t.Errorf("what Seal made of %q: %v, ours %v", text, err, sealed.IsOurs(file))
		}
		for what, edited := range map[string]string{
			"appended": file + "b = 2\n", "truncated": file[:len(file)-1], "replaced": "a = 1\n", "emptied": "",
			"changed": strings.Replace(file, "sha256 ", "sha256 0", 1),
		} {
			if err := sealed.Check(edited); !errors.Is(err, sealed.ErrEdited) {
				t.Errorf("%q, %s: %v, want ErrEdited", text, what, err)
			}
		}
	}
	if sealed.IsOurs("a = 1\n") {
		t.Error("a file without the header is called ours")
	}
}
