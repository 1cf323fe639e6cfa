package stream

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/durable"
	"github.com/glance-dtn/glance-dtn/mover"
)

// The receiver's state directory:
//
//	tickets/HASH.json     a ticket that was used: for which file, until when, and whether it is spent
//	arrivals/NAME.json    a file that arrives or has arrived
//	arrivals/NAME.blocks  its proven blocks: index(4) XXH3-128(16), appended, never synced
//
// What a power failure does to the last one does no harm: its blocks are read again
// and compared before they are trusted.
const (
	ticketDir  = "tickets"
	arrivalDir = "arrivals"
	recordSize = 20
)

// record is what is kept of an arrival.
type record struct {
	File  mover.File `json:"file"`
	Since time.Time  `json:"since"`
}

// use is what is kept of a ticket until it expires.
type use struct {
	ID      string     `json:"id"`
	File    mover.File `json:"file"`
	Expires time.Time  `json:"expires"`
	Spent   bool       `json:"spent"`
}

func recordName(name string) string { return arrivalDir + "/" + path.Base(name) + ".json" }
func blocksName(name string) string { return arrivalDir + "/" + path.Base(name) + ".blocks" }

// useName keeps a ticket's ID, which its site chose, out of the name of a file.
func useName(id string) string {
	sum := sha256.Sum256([]byte(id))
	return ticketDir + "/" + hex.EncodeToString(sum[:16]) + ".json"
}

func saveJSON(root *os.Root, name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return durable.WriteFile(root, name, b, 0o600)
}

// loadAll decodes every JSON file in dir, and removes what a crash left of one
// that was being written.
func loadAll[T any](root *os.Root, dir string) ([]T, error) {
	entries, err := fs.ReadDir(root.FS(), dir)
	if err != nil {
		return nil, err
	}
	var all []T
	for _, e := range entries {
		name := dir + "/" + e.Name()
		if durable.IsTemp(name) {
			if err := durable.Remove(root, name); err != nil {
				return nil, err
			}
		}
		if durable.IsTemp(name) || !strings.HasSuffix(name, ".json") {
			continue
		}
		b, err := root.ReadFile(name)
		if err != nil {
			return nil, err
		}
		var v T
		if err := json.Unmarshal(b, &v); err != nil {
			return nil, fmt.Errorf("%s: %w; if its disk was damaged, remove the file: what it stands for arrives anew", name, err)
		}
		all = append(all, v)
	}
	return all, nil
}

// readJournal calls claim with what the journal of name holds of a file with n
// blocks, later records of a block after earlier ones. It cuts off a torn record,
// which would shift those that are appended after it.
func readJournal(state *os.Root, name string, n uint32, claim func(i uint32, sum digest.Block)) error {
	f, err := state.OpenFile(blocksName(name), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	whole, err := parseJournal(f, n, claim)
	if err != nil {
		return err
	}
	return f.Truncate(whole)
}

// parseJournal is readJournal of an open journal. It returns the length of the
// records that are not torn.
func parseJournal(r io.Reader, n uint32, claim func(i uint32, sum digest.Block)) (whole int64, err error) {
	var b [recordSize]byte
	for records := bufio.NewReader(r); ; whole += recordSize {
		_, err := io.ReadFull(records, b[:])
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return whole, nil
		}
		if err != nil {
			return 0, err
		}
		if i := binary.BigEndian.Uint32(b[:]); i < n {
			claim(i, digest.Block(b[4:]))
		}
	}
}

func journalRecord(i uint32, sum digest.Block) []byte {
	return append(binary.BigEndian.AppendUint32(make([]byte, 0, recordSize), i), sum[:]...)
}
