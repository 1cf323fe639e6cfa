package stream

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/durable"
	"github.com/glance-dtn/glance-dtn/mover"
)

// The receiver's state directory:
//
//	receiver.log          tickets that were used, files that arrive or have arrived; see durable.Log
//	arrivals/NAME.blocks  a file's proven blocks: index(4) XXH3-128(16), or boot, appended, never synced
//
// What a power failure does to the last one does no harm: its blocks are read again
// and compared before they are trusted.
const (
	logName    = "receiver.log"
	arrivalDir = "arrivals"
	recordSize = 20
)

// record is what is kept of an arrival.
type record struct {
	File    mover.File `json:"file"`
	Since   time.Time  `json:"since"`
	Through bool       `json:"through,omitempty"` // blocks go on from here one by one: nobody hashes the whole
}

// use is what is kept of a ticket until it expires.
type use struct {
	ID      string     `json:"id"`
	File    mover.File `json:"file"`
	Expires time.Time  `json:"expires"`
	Spent   bool       `json:"spent"`
}

// The keys of the log.
const (
	ticketKey  = "ticket "  // and its ID
	arrivalKey = "arrival " // and the file's name
)

func (u use) set() durable.Change    { return durable.Set(ticketKey+u.ID, u) }
func (r record) set() durable.Change { return durable.Set(arrivalKey+r.File.Name, r) }

func blocksName(name string) string { return arrivalDir + "/" + path.Base(name) + ".blocks" }

// boot stands for the digest of a block that nobody here has seen: the kernel has taken it
// from the connection to its page cache, where it is for as long as the kernel runs. It is
// the id of this run; nil: it has none.
var boot = sync.OnceValue(func() *digest.Block {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil
	}
	id, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(text)), "-", ""))
	if err != nil || len(id) != len(digest.Block{}) {
		return nil
	}
	return new(digest.Block(id))
})

// cutTorn cuts off a torn record, which would shift those that are appended after it: a power
// failure leaves one, and a full disk.
func cutTorn(journal *os.File) error {
	info, err := journal.Stat()
	if err != nil || info.Size()%recordSize == 0 {
		return err
	}
	return journal.Truncate(info.Size() - info.Size()%recordSize)
}

// readJournal calls claim with what the journal of name holds of a file with n
// blocks, later records of a block after earlier ones, but for a torn one.
func readJournal(state *os.Root, name string, n uint32, claim func(i uint32, sum digest.Block)) error {
	f, err := state.Open(blocksName(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return parseJournal(f, n, claim)
}

// parseJournal is readJournal of an open journal.
func parseJournal(r io.Reader, n uint32, claim func(i uint32, sum digest.Block)) error {
	var b [recordSize]byte
	for records := bufio.NewReader(r); ; {
		_, err := io.ReadFull(records, b[:])
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil
		}
		if err != nil {
			return err
		}
		if i := binary.BigEndian.Uint32(b[:]); i < n {
			claim(i, digest.Block(b[4:]))
		}
	}
}

func journalRecord(i uint32, sum digest.Block) []byte {
	return append(binary.BigEndian.AppendUint32(make([]byte, 0, recordSize), i), sum[:]...)
}
