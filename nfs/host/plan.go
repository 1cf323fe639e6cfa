package host

import "github.com/glance-dtn/glance-dtn/nfs"

// Wish names options that are to hold for a mount or for an export of this host.
type Wish struct {
	Mount string // the mount point of an NFS mount; empty: the wish is about Export

	Export string // the path of an export, as exportfs -s prints it
	Client string // of the export, as exportfs -s prints it; empty: all its clients

	// Options are those that are to hold, as in sync or rsize=1048576. What
	// contradicts them goes, everything else stays.
	Options nfs.Options
}

// How a change is made.
const (
	KindExport  = "export"  // the server's table of exports; clients notice nothing
	KindRemount = "remount" // mount -o remount; programs notice nothing
	KindMount   = "mount"   // umount and mount; programs with open files are in the way
)

// Change is one step of a plan.
type Change struct {
	Kind   string `json:"kind"`
	Target string `json:"target"`           // mount point, or path of the export
	Client string `json:"client,omitempty"` // of the export
	Source string `json:"source,omitempty"` // of the mount
	Type   string `json:"type,omitempty"`   // of the mount: nfs or nfs4

	// Asked is the wish; From are all options that hold, To those that will.
	Asked nfs.Options `json:"asked"`
	From  nfs.Options `json:"from"`
	To    nfs.Options `json:"to"`

	// File is the file of our own that has the change, and Text what it will say of
	// it; empty where no file is needed or none would help.
	File string `json:"file,omitempty"`
	Text string `json:"text,omitempty"`
	// Lasts says that the change holds after this host or its server restarts.
	Lasts bool `json:"lasts"`

	// Says is the change in sentences, for a person.
	Says string `json:"says"`
}

// Plan returns the changes that make the wishes hold, in their order; none where
// they do already. It fails where a wish is about what is not there or cannot be
// changed, and says what is there.
func Plan(s State, wishes ...Wish) ([]Change, error) { return nil, nil }
