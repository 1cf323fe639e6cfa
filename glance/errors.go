package glance

import "errors"

// Errors that a caller of an image service acts on.
var (
	ErrNoImage = errors.New("no such image")
	// ErrIDUsed: Glance refuses the id. It is taken by an image that this user may
	// not see, or was used by an image that is deleted: Glance never gives such an
	// id again.
	ErrIDUsed = errors.New("Glance refuses this image id: it was used before")
	// ErrNotQueued: the image is not in a state that takes data.
	ErrNotQueued = errors.New("the image does not take data in its present state")
	// ErrQuota: the upload exceeds a quota, Glance's size limit, or the store is full.
	ErrQuota = errors.New("Glance has no room for the image")
	// ErrNoData: Glance calls the image active, but its store has lost the bytes.
	ErrNoData = errors.New("the image's data is missing in Glance's store")
	// ErrNotTold: Glance does not tell this user of its stores or limits, or has no way to.
	ErrNotTold = errors.New("Glance does not tell")
)
