package host

// Holder is a process that keeps a mount from being unmounted.
type Holder struct {
	PID     int    `json:"pid"`
	Command string `json:"command"`
	What    string `json:"what"` // "working directory", "open file /mnt/a", ...
}

// BusyError says that a mount is in use.
type BusyError struct {
	Dir     string
	Holders []Holder // those that this user may see
	Mounts  []string // mount points below
}

func (e *BusyError) Error() string { return e.Dir }
