package client

import (
	"context"
	"fmt"
	"net/http"
	"net/url"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/mover"
)

// BlockCheck returns a function that compares a block of an arrival, mover.BlockSize
// long but for the last, with what the DTN has proven of it: the reader's proof that
// the export gave it the bytes that arrived, at a fraction of the cost of the whole
// file's digest. It returns a *digest.MismatchError, or mover.ErrNoDigests when the
// DTN does not know the block's digest. It is for one goroutine.
func (c *Client) BlockCheck(name string) func(ctx context.Context, index int64, block []byte) error {
	var first int64 // block of sums[0]
	var sums []digest.Block
	return func(ctx context.Context, index int64, block []byte) error {
		if index < first || index >= first+int64(len(sums)) {
			told, err := c.blocks(ctx, name, index)
			if err != nil {
				return err
			}
			if len(told.Sums) == 0 {
				return fmt.Errorf("%s, block %d: %w", name, index, mover.ErrNoDigests)
			}
			first, sums = index, told.Sums
		}
		if err := digest.Check(sums[index-first].Digest(), digest.OfBlock(block).Digest()); err != nil {
			return fmt.Errorf("%s, block %d: %w", name, index, err)
		}
		return nil
	}
}

func (c *Client) blocks(ctx context.Context, name string, from int64) (mover.Blocks, error) {
	var told mover.Blocks
	base, err := inboxBase(name)
	if err != nil {
		return told, err
	}
	err = c.call(ctx, http.MethodGet, nil, &told, fmt.Sprintf("v1/arrivals/%s/blocks?from=%d", url.PathEscape(base), from))
	if isProblem(err, http.StatusNotFound) {
		err = fmt.Errorf("%w (%w)", mover.ErrNoArrival, err)
	}
	return told, err
}
