// Package failure says what should become of work that could not go on. The
// place that knows the cause marks the error; the loop that owns the work reads
// the mark. An unmarked error means: try again, later and later.
package failure

import (
	"errors"
	"time"
)

type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// Permanently marks err as one that no repetition cures: a person has to act.
// It returns nil for nil.
func Permanently(err error) error {
	if err == nil {
		return nil
	}
	return permanent{err}
}

// IsPermanent reports whether err, or an error it wraps, was marked by Permanently.
func IsPermanent(err error) bool {
	_, ok := errors.AsType[permanent](err)
	return ok
}

type after struct {
	error
	d time.Duration
}

func (a after) Unwrap() error { return a.error }

// After is not a failure: the work waits for something and wants to be called
// again once d has passed. err says what it waits for, in words for a person.
func After(d time.Duration, err error) error { return after{err, d} }

// Delay returns the wait that After asked for.
func Delay(err error) (time.Duration, bool) {
	a, ok := errors.AsType[after](err)
	return a.d, ok
}
