package mover

import "errors"

// Errors of staging a file from a store to an export.
var (
	ErrNoFile    = errors.New("the image has no file in the store")
	ErrTruncated = errors.New("the image's file has not the size that Glance says")
	ErrSpace     = errors.New("no space left")
	// ErrOutbox: nothing can be put there or removed; the inbox can be read.
	ErrOutbox = errors.New("the outbox cannot be used")
	// ErrUnreadable: it lies in the outbox, with an owner, group and mode that the DTN may
	// not read.
	ErrUnreadable = errors.New("the DTN may not read the file")
)
