//go:build !linux

package disk

import (
	"errors"
	"os"
)

func Sparse(*os.File, int64) bool { return false }

func Hole(*os.File, int64, int64) bool { return false }

func Punch(*os.File, int64, int64) error { return errors.ErrUnsupported }

func Allocated(*os.File, int64) bool { return false }

func Allocate(*os.File, int64) (bool, error) { return false, nil }

func Cached(*os.File, int64, int64) (bytes int64, known bool) { return 0, false }

func Cold(*os.File, int64, int64) bool { return false }

func Drop(*os.File, int64, int64) {}

func WriteBack(*os.File, int64, int64) {}

func WaitBack(*os.File, int64, int64) error { return nil }

func SyncFS(*os.File) error { return errors.ErrUnsupported }
