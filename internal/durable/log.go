package durable

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
	"path"
)

// minGarbage is how much of a log may be out of date however little is not.
const minGarbage = 1 << 20

// brokenSuffix ends the name under which a damaged log is kept.
const brokenSuffix = ".broken"

// Log is a map from keys to values, which are JSON, kept as one file to which changes are
// appended. Those who change it at the same time share one sync. The file is written anew
// when most of it is out of date, and after an error of the disk.
//
// A line of the file holds the changes that became durable at once: the CRC-32C of what
// follows it, a blank, and the changes as JSON. So a crash loses a line or it does not.
type Log struct {
	root  *os.Root
	name  string
	group *Group[Change]

	// Only append, within the group, uses what follows.
	file   *os.File
	latest map[string]version
	lines  int   // of the file
	size   int64 // of the file
	live   int64 // of the values that are not out of date
	anew   bool  // the file cannot be appended to any more
	keep   bool  // it is damaged: a person may want to see it
	closed bool
}

// Change sets the value of a key, or removes the key when there is no value. The value is
// JSON on one line, as Set makes it.
type Change struct {
	Key   string          `json:"key"`
	Value json.RawMessage `json:"value,omitempty"`
}

// version says where a key's value is.
type version struct {
	line, index int
	size        int64
}

// Set returns the change that gives key the value v. It panics where v has no JSON form.
func Set(key string, v any) Change {
	value, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("durable: %v", err))
	}
	return Change{Key: key, Value: value}
}

// OpenLog opens the log in the file name under root, or makes it, and calls load for each
// of its keys, those that were set earlier first. What cannot be read, or is refused by
// load, is told damaged and is not in the log: it stays in the file, and once the log is
// written to, in another one whose name ends in .broken. What a crash left of changes of
// which nobody was told that they had succeeded is no damage.
func OpenLog(root *os.Root, name string, load func(key string, value []byte) error, damaged func(error)) (*Log, error) {
	l := &Log{root: root, name: name, latest: map[string]version{}}
	l.group = NewGroup(l.append)
	file, err := root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err == nil {
		l.file, err = file, SyncDir(root, path.Dir(name))
	}
	if err == nil {
		err = l.index(damaged)
	}
	if err == nil {
		err = l.scan(func(line int, changes []Change, _ int64, _ error) error {
			for _, c := range l.current(line, changes) {
				if err := load(c.Key, c.Value); err != nil {
					l.hurt(damaged, fmt.Errorf("%s: line %d: %s: %w", name, line+1, c.Key, err))
					l.forget(c.Key)
				}
			}
			return nil
		})
	}
	if err != nil {
		err = fmt.Errorf("open %s: %w", name, err)
		if file != nil {
			err = errors.Join(err, file.Close())
		}
		return nil, err
	}
	return l, nil
}

func (l *Log) hurt(damaged func(error), err error) {
	l.anew, l.keep = true, true
	damaged(err)
}

// Commit makes changes. On nil all of them survive a power failure; after a crash or an
// error all of them have been made or none. It may be called by several goroutines at
// once. What it was called for first is made first.
func (l *Log) Commit(changes ...Change) error {
	if len(changes) == 0 {
		return nil
	}
	return l.group.Do(changes...)
}

// Close closes the file. No Commit succeeds after it.
func (l *Log) Close() error {
	l.group.doing.Lock()
	defer l.group.doing.Unlock()
	l.closed = true
	return l.file.Close()
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func encodeLine(changes []Change) []byte {
	size := len("00000000 []\n")
	for _, c := range changes {
		size += len(c.Key) + len(c.Value) + len(`{"key":"","value":},`)
	}
	line := append(make([]byte, 0, size), "00000000 ["...)
	for i, c := range changes {
		if i > 0 {
			line = append(line, ',')
		}
		key, _ := json.Marshal(c.Key) // any string has a JSON form
		line = append(append(line, `{"key":`...), key...)
		if c.Value != nil {
			line = append(append(line, `,"value":`...), c.Value...)
		}
		line = append(line, '}')
	}
	line = append(line, ']')
	copy(line, fmt.Sprintf("%08x", crc32.Checksum(line[9:], castagnoli)))
	return append(line, '\n')
}

func decodeLine(line []byte) (changes []Change, err error) {
	line, whole := bytes.CutSuffix(line, []byte("\n"))
	sum, body, ok := bytes.Cut(line, []byte(" "))
	if !whole || !ok || string(sum) != fmt.Sprintf("%08x", crc32.Checksum(body, castagnoli)) {
		return nil, errors.New("the checksum is wrong")
	}
	return changes, json.Unmarshal(body, &changes)
}

// append is what a group of Commits does.
func (l *Log) append(changes []Change) error {
	if l.closed {
		return fmt.Errorf("write %s: %w", l.name, os.ErrClosed)
	}
	if l.anew || l.size > 2*l.live+minGarbage { // a value's line is a little longer than the value
		if err := l.rewrite(); err != nil {
			l.anew = true
			return fmt.Errorf("write %s anew: %w", l.name, err)
		}
	}
	line := encodeLine(changes)
	_, err := l.file.Write(line)
	if err == nil {
		err = l.file.Sync()
	}
	if err != nil {
		l.anew = true
		return fmt.Errorf("write %s: %w", l.name, err)
	}
	l.note(changes, int64(len(line)))
	return nil
}

// note takes the next line of the file into the index.
func (l *Log) note(changes []Change, size int64) {
	for i, c := range changes {
		l.forget(c.Key)
		if c.Value != nil {
			v := version{l.lines, i, int64(len(c.Key) + len(c.Value))}
			l.latest[c.Key] = v
			l.live += v.size
		}
	}
	l.lines++
	l.size += size
}

func (l *Log) forget(key string) {
	l.live -= l.latest[key].size
	delete(l.latest, key)
}

// scan calls each for the lines of the file, with what is wrong with them.
func (l *Log) scan(each func(line int, changes []Change, size int64, wrong error) error) error {
	r := bufio.NewReaderSize(io.NewSectionReader(l.file, 0, math.MaxInt64), 1<<20)
	for n := 0; ; n++ {
		text, err := r.ReadBytes('\n')
		if err != nil && err != io.EOF {
			return err
		}
		if len(text) > 0 {
			changes, wrong := decodeLine(text)
			if err := each(n, changes, int64(len(text)), wrong); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
	}
}

// index reads the file for the first time. A line that is wrong is damage where another
// follows: the last may be what a crash left of it.
func (l *Log) index(damaged func(error)) error {
	var wrongs []error
	return l.scan(func(line int, changes []Change, size int64, wrong error) error {
		l.note(changes, size)
		if wrong != nil {
			l.anew = true
			wrongs = append(wrongs, fmt.Errorf("%s: line %d: %w", l.name, line+1, wrong))
			return nil
		}
		for _, w := range wrongs {
			l.hurt(damaged, w)
		}
		wrongs = nil
		return nil
	})
}

// current returns those of a line's changes that are not out of date.
func (l *Log) current(line int, changes []Change) (cs []Change) {
	for i, c := range changes {
		if v, ok := l.latest[c.Key]; ok && v.line == line && v.index == i {
			cs = append(cs, c)
		}
	}
	return cs
}

// rewrite replaces the file by one without what is out of date.
func (l *Log) rewrite() (err error) {
	temp := tempName(l.name)
	if err := removeIfThere(l.root, temp); err != nil {
		return err
	}
	f, err := l.root.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	next := &Log{root: l.root, name: l.name, file: f, latest: map[string]version{}}
	if err = l.copyTo(next); err == nil {
		err = l.replace(temp)
	}
	if err != nil {
		return errors.Join(err, f.Close(), removeIfThere(l.root, temp))
	}
	err = l.file.Close() // it was only read
	l.file, l.latest, l.lines, l.size, l.live, l.anew, l.keep = f, next.latest, next.lines, next.size, next.live, false, false
	return err
}

func (l *Log) copyTo(next *Log) error {
	w := bufio.NewWriterSize(next.file, 1<<20)
	err := l.scan(func(line int, changes []Change, _ int64, _ error) error {
		changes = l.current(line, changes)
		if len(changes) == 0 {
			return nil
		}
		text := encodeLine(changes)
		next.note(changes, int64(len(text)))
		_, err := w.Write(text)
		return err
	})
	if err == nil && len(next.latest) != len(l.latest) {
		err = errors.New("it does not hold any more what it held")
	}
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = next.file.Sync()
	}
	return err
}

// replace gives the new file its name, and the old one another if it is to be kept.
func (l *Log) replace(temp string) error {
	if l.keep {
		err := removeIfThere(l.root, l.name+brokenSuffix)
		if err == nil {
			err = l.root.Link(l.name, l.name+brokenSuffix)
		}
		if err != nil {
			return err
		}
	}
	if err := l.root.Rename(temp, l.name); err != nil {
		return err
	}
	return SyncDir(l.root, path.Dir(l.name))
}
