package dtn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/disk"
	"github.com/glance-dtn/glance-dtn/internal/durable"
	"github.com/glance-dtn/glance-dtn/mover"
)

// settleTime is about how long one call of settle works, so that it answers in time.
const settleTime = 5 * time.Second

// settlePiece is how much is written to disk before the clock is looked at.
const settlePiece = 8 << 20

// errSettling: the disk is not done yet.
var errSettling = errors.New("still writing to disk")

type settleInput struct {
	Name string `path:"name" maxLength:"512" doc:"base name in the outbox"`
	From int64  `query:"from" minimum:"0" maximum:"4294967296" doc:"index of the first block told"`
}

// settle syncs a file of the outbox to this machine's disk and tells what is there.
func (s *Server) settle(ctx context.Context, in *settleInput) (*output[mover.Settled], error) {
	name := mover.Outbox + "/" + in.Name
	if err := mover.CheckName(mover.Outbox, mover.Outbox+"/"+strings.TrimPrefix(in.Name, ".")); err != nil { // an unfinished copy is hidden
		return nil, problem(http.StatusUnprocessableEntity, mover.CodeName, err.Error())
	}
	told, err := settle(ctx, s.opt.Export, name, in.From, settleTime)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, problem(http.StatusNotFound, "", fmt.Sprintf("%s is not on this DTN's export", name))
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, problem(http.StatusUnprocessableEntity, mover.CodeSource, fmt.Sprintf("this DTN (uid %d) may not read %s: give its user the file's group, or set transfer.stage: copy at the agent (%v)", os.Geteuid(), name, err))
	}
	if errors.Is(err, errSettling) {
		return nil, problem(http.StatusServiceUnavailable, "", fmt.Sprintf("%s: %v", name, err))
	}
	if mover.CodeOf(err) == mover.CodeName {
		return nil, problem(http.StatusUnprocessableEntity, mover.CodeName, err.Error())
	}
	if err != nil {
		return nil, problem(http.StatusInternalServerError, mover.CodeOf(err), err.Error())
	}
	return &output[mover.Settled]{told}, nil
}

// settle puts a file on disk, its data and its name, and then reads blocks of it, from
// the one given on. Each takes about limit at most; errSettling when the disk has not got
// all of it by then.
func settle(ctx context.Context, export *os.Root, name string, from int64, limit time.Duration) (told mover.Settled, err error) {
	told.Sums = []digest.Block{}
	is, err := export.Lstat(name)
	if err != nil {
		return told, err
	}
	if !is.Mode().IsRegular() {
		return told, mover.Coded(mover.CodeName, fmt.Errorf("%s is not a plain file (%v)", name, is.Mode().Type()))
	}
	f, err := export.Open(name)
	if err != nil {
		return told, err
	}
	defer f.Close()
	if opened, err := f.Stat(); err != nil || !os.SameFile(is, opened) {
		return told, errors.Join(fmt.Errorf("%s was replaced while it was opened", name), err)
	}
	if err := syncFile(f, is.Size(), limit); errors.Is(err, errSettling) {
		return told, fmt.Errorf("sync %s: %w", name, err)
	} else if err != nil {
		return told, mover.Coded(mover.CodeContent, fmt.Errorf("sync %s: %w; the file has to be written anew", name, err))
	}
	if err := durable.SyncDir(export, mover.Outbox); err != nil {
		return told, fmt.Errorf("sync %s: %w", mover.Outbox, err)
	}
	told.Size = is.Size()
	block := make([]byte, mover.BlockSize)
	for began := time.Now(); ctx.Err() == nil; from++ {
		n, err := f.ReadAt(block, from*mover.BlockSize)
		if n > 0 && (err == nil || errors.Is(err, io.EOF)) {
			told.Sums = append(told.Sums, digest.OfBlock(block[:n]))
		}
		if errors.Is(err, io.EOF) {
			return told, nil
		}
		if err != nil {
			return told, fmt.Errorf("read %s back: %w", name, err)
		}
		if time.Since(began) > limit {
			return told, nil
		}
	}
	return told, ctx.Err()
}

// syncFile is f.Sync for a file of which much may not be written yet: it gives up after
// limit, and goes on from there when it is called again. Any other error is the last word
// on the file: the kernel tells once what it could not write, and forgets it then.
func syncFile(f *os.File, size int64, limit time.Duration) error {
	began := time.Now()
	for off := int64(0); off < size; off += settlePiece {
		if err := disk.WaitBack(f, off, settlePiece); err != nil {
			return err
		}
		if time.Since(began) > limit {
			return fmt.Errorf("%w: %d of %d bytes so far", errSettling, min(off+settlePiece, size), size)
		}
	}
	return f.Sync()
}
