package gridftp

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/mover"
)

// answers is the folder of an export where its Inbox answers senders.
const answers = "answers"

// offer asks an Inbox to take a file. The sender puts it into the inbox before the data.
type offer struct {
	Session string     `json:"session"`
	From    string     `json:"from"` // the sender's site
	File    mover.File `json:"file"`
	Ticket  string     `json:"ticket"`
}

// manifest says that the data beside it is complete. The sender writes it last.
type manifest struct {
	Session string     `json:"session"`
	Job     string     `json:"job"` // the transfer's key, for a person who looks
	File    mover.File `json:"file"`
}

// answer is what an Inbox tells the sender of a session.
type answer struct {
	State string         `json:"state"`
	Have  int64          `json:"have"`           // bytes that were read
	Sums  []digest.Block `json:"sums,omitempty"` // of the blocks that lie there
	Code  mover.Code     `json:"code,omitempty"`
	Error string         `json:"error,omitempty"`
}

// The states of an answer.
const (
	answerOpen    = "open"    // send the data
	answerProving = "proving" // what lies there is being read
	answerArrived = "arrived" // proven, synced, under its final name
	answerRefused = "refused"
)

func (a answer) err() error {
	if a.State != answerRefused {
		return nil
	}
	return mover.Coded(a.Code.Known(), errors.New(mover.Told(a.Error)))
}

// Names in the export, of a file in the inbox.
func offerName(name string) string    { return hidden(name, ".offer") }
func partName(name string) string     { return hidden(name, ".part") }
func manifestName(name string) string { return hidden(name, ".manifest") }

func hidden(name, suffix string) string {
	dir, base := path.Split(name)
	return dir + "." + base + suffix
}

func answerName(session string) string { return answers + "/" + session + ".json" }

var plain = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}$`)

// checkName reports a name that is not a plain one in box. globus-url-copy takes some
// characters for wildcards, so that no more are allowed than are needed.
func checkName(box, name string) error {
	err := mover.CheckName(box, name)
	if err == nil && !plain.MatchString(path.Base(name)) {
		err = fmt.Errorf("%q is not a name that GridFTP can move: letters, digits and . _ - only", name)
	}
	return mover.Coded(mover.CodeName, err)
}

// usable reports a ticket that a sender of a site cannot use for f.
func usable(t mover.Ticket, site string, f mover.File) error {
	switch {
	case t.From != site:
		return fmt.Errorf("ticket: it lets site %q send, the sender is of site %q", t.From, site)
	case t.File.Size != f.Size || t.File.Digest != f.Digest:
		return fmt.Errorf("ticket: it is for %v of %d bytes, the sender has %v of %d", t.File.Digest, t.File.Size, f.Digest, f.Size)
	}
	return t.File.Digest.Validate() // nothing else proves what came
}

// hashName is a file's name that follows from the parts, which may hold anything.
func hashName(parts ...string) string {
	h := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(h[:16])
}
