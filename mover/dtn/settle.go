package dtn

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/zeebo/blake3"

	"github.com/glance-dtn/glance-dtn/mover"
)

// settleTime is about how long one call of settle reads, so that it answers in time.
const settleTime = 5 * time.Second

type settleInput struct {
	Name string `path:"name" maxLength:"512" doc:"base name in the outbox"`
	From int64  `query:"from" minimum:"0" doc:"index of the first block told"`
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
	if mover.CodeOf(err) == mover.CodeName {
		return nil, problem(http.StatusUnprocessableEntity, mover.CodeName, err.Error())
	}
	if err != nil {
		return nil, problem(http.StatusInternalServerError, mover.CodeOf(err), err.Error())
	}
	return &output[mover.Settled]{told}, nil
}

// settle reads blocks of a file, from the one given on, for about limit. The file's
// data and its name are on disk before anything is read.
func settle(ctx context.Context, export *os.Root, name string, from int64, limit time.Duration) (told mover.Settled, err error) {
	told.BLAKE3 = []string{}
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
	if err := f.Sync(); err != nil {
		return told, fmt.Errorf("sync %s: %w", name, err)
	}
	told.Size = is.Size()
	block := make([]byte, mover.BlockSize)
	for began := time.Now(); time.Since(began) < limit && ctx.Err() == nil; from++ {
		n, err := f.ReadAt(block, from*mover.BlockSize)
		if n > 0 && (err == nil || errors.Is(err, io.EOF)) {
			sum := blake3.Sum256(block[:n])
			told.BLAKE3 = append(told.BLAKE3, hex.EncodeToString(sum[:]))
		}
		if errors.Is(err, io.EOF) {
			return told, nil
		}
		if err != nil {
			return told, fmt.Errorf("read %s back: %w", name, err)
		}
	}
	return told, ctx.Err()
}
