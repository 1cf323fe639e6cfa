// Package glance holds the nouns of an OpenStack image service: an image, its
// content, and the hint that something about one may have changed. It does no I/O.
package glance

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/digest"
)

// ImageID is an image's UUID in its canonical lower-case form. In a filesystem
// store it is also the name of the image's file.
type ImageID string

// ParseImageID returns s as an ImageID, or an error when it is not a UUID. An
// ImageID that passed here is safe as a file name.
func ParseImageID(s string) (ImageID, error) {
	id := strings.ToLower(strings.TrimSpace(s))
	if !isUUID(id) {
		return "", fmt.Errorf("%q is not an image id (a UUID)", s)
	}
	return ImageID(id), nil
}

// isUUID is asked at every write to a file of a store, and so is no regular expression.
func isUUID(s string) bool {
	if len(s) != len("00000000-0000-0000-0000-000000000000") {
		return false
	}
	for i, c := range []byte(s) {
		switch i {
		case 8, 13, 18, 23:
			if c != '-' {
				return false
			}
		default:
			if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
				return false
			}
		}
	}
	return true
}

// Status is an image's state in Glance.
type Status string

// The statuses that decide something here; Glance has more.
const (
	Queued      Status = "queued"      // a record without data
	Saving      Status = "saving"      // a PUT is running, or was when glance-api died
	Importing   Status = "importing"   // an import task is running
	Active      Status = "active"      // data complete and hashed
	Deactivated Status = "deactivated" // data complete, downloads forbidden by an admin
)

// Image is what Glance's v2 API says of an image.
type Image struct {
	ID              ImageID           `json:"id"`
	Name            string            `json:"name,omitempty"`
	Status          Status            `json:"status"`
	Size            int64             `json:"size" doc:"bytes; 0 until active"`
	Hash            digest.Digest     `json:"hash" doc:"os_hash_algo and os_hash_value: what the content is"`
	DiskFormat      string            `json:"disk_format,omitempty"`
	ContainerFormat string            `json:"container_format,omitempty"`
	MinDisk         int               `json:"min_disk,omitempty" doc:"GiB"`
	MinRAM          int               `json:"min_ram,omitempty" doc:"MiB"`
	Visibility      string            `json:"visibility,omitempty" enum:"public,community,shared,private,"`
	Protected       bool              `json:"protected,omitempty"`
	Hidden          bool              `json:"hidden,omitempty"`
	Owner           string            `json:"owner,omitempty" doc:"project id at the image's own site"`
	Tags            []string          `json:"tags,omitempty" nullable:"false"`
	Properties      map[string]string `json:"properties,omitempty" doc:"custom properties, without those that Glance manages" nullable:"false"`
	CreatedAt       time.Time         `json:"created_at,omitzero"`
	UpdatedAt       time.Time         `json:"updated_at,omitzero"`
}

// Properties that this program sets on the images it makes.
const (
	// PropJob names the job that is making the image. Its presence on an image
	// that is not active means: ours, half made. It is removed at the end.
	PropJob = "glance_dtn_job"
	// PropSourceID is the image's id at the site it came from, set only where
	// that id could not be used here because Glance never reuses a deleted id.
	PropSourceID = "glance_dtn_source_id"
)

// SameContent reports whether both images are complete and hold the same bytes.
func (i Image) SameContent(o Image) bool {
	return !i.Hash.IsZero() && i.Hash == o.Hash && i.Size == o.Size
}

// SourceID is the id by which the image is known at the site it first came from.
func (i Image) SourceID() ImageID {
	if s := i.Properties[PropSourceID]; s != "" {
		return ImageID(s)
	}
	return i.ID
}

// Label is the image's name for a person: its name, and its id where names may repeat.
func (i Image) Label() string {
	if i.Name == "" {
		return string(i.ID)
	}
	return i.Name + " (" + string(i.ID) + ")"
}

// MetadataDiff lists the names of the fields in which a replica differs from its
// source: what an operator can set, and not the content, the owner or the dates.
func (i Image) MetadataDiff(replica Image) []string {
	var d []string
	add := func(name string, same bool) {
		if !same {
			d = append(d, name)
		}
	}
	add("name", i.Name == replica.Name)
	add("disk_format", i.DiskFormat == replica.DiskFormat)
	add("container_format", i.ContainerFormat == replica.ContainerFormat)
	add("min_disk", i.MinDisk == replica.MinDisk)
	add("min_ram", i.MinRAM == replica.MinRAM)
	add("visibility", i.Visibility == replica.Visibility)
	add("protected", i.Protected == replica.Protected)
	add("os_hidden", i.Hidden == replica.Hidden)
	sorted := func(t []string) []string { return slices.Sorted(slices.Values(t)) }
	add("tags", slices.Equal(sorted(i.Tags), sorted(replica.Tags)))
	strip := func(m map[string]string) map[string]string {
		m = maps.Clone(m)
		delete(m, PropSourceID)
		delete(m, PropJob)
		return m
	}
	add("properties", maps.Equal(strip(i.Properties), strip(replica.Properties)))
	return d
}

// Hint says that an image may have changed and where that was noticed. A hint is
// never trusted: whoever gets one asks Glance.
type Hint struct {
	ID   ImageID
	From string // "inotify", "scan", "listing", "cli"
}
