package store

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
)

// Kind is how a store and Glance disagree.
type Kind string

// The kinds.
const (
	FileWithoutImage Kind = "file without image"
	ImageWithoutFile Kind = "image without file"
	WrongSize        Kind = "wrong size"
)

// Fault is a disagreement between a store and Glance.
type Fault struct {
	ID   glance.ImageID
	Path string // empty when there is no file
	Kind Kind
	Note string // what it means and what to do
}

// settling is how long a file or an image is left alone after its last change:
// files and images are not listed at the same moment.
const settling = 5 * time.Minute

// Compare returns what does not fit together, by id. images must be all images of
// Glance, and all of those with data must belong to this store. What is just being
// uploaded, or changed less than five minutes before now, is no fault.
func Compare(files []File, images []glance.Image, now time.Time) []Fault {
	byID := make(map[glance.ImageID]glance.Image, len(images))
	for _, i := range images {
		byID[i.ID] = i
	}
	var faults []Fault
	found := make(map[glance.ImageID]bool, len(files))
	for _, f := range files {
		found[f.ID] = true
		i, known := byID[f.ID]
		if now.Sub(f.ModTime) < settling || now.Sub(i.UpdatedAt) < settling {
			continue
		}
		switch {
		case !known:
			faults = append(faults, Fault{f.ID, f.Path, FileWithoutImage,
				"no image has this id: left over from an upload that died, or kept for the scrubber by delayed_delete; when it is neither, move it away"})
		case i.Status == glance.Queued:
			faults = append(faults, Fault{f.ID, f.Path, FileWithoutImage,
				"the image is queued, and Glance refuses to upload over a file: move it away"})
		case hasData(i) && f.Size != i.Size:
			faults = append(faults, Fault{f.ID, f.Path, WrongSize,
				fmt.Sprintf("Glance says %d bytes, the file has %d: downloads will hang or fail; put the file back from a replica or a backup", i.Size, f.Size)})
		}
	}
	for _, i := range images {
		if hasData(i) && !found[i.ID] && now.Sub(i.UpdatedAt) >= settling {
			faults = append(faults, Fault{i.ID, "", ImageWithoutFile,
				"Glance says " + string(i.Status) + ", and answers downloads with nothing; is the store mounted? put the file back from a replica or a backup"})
		}
	}
	slices.SortFunc(faults, func(a, b Fault) int { return cmp.Compare(a.ID, b.ID) })
	return faults
}

// hasData reports whether the image must have a file.
func hasData(i glance.Image) bool {
	return i.Status == glance.Active || i.Status == glance.Deactivated
}
