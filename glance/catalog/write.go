package catalog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/internal/failure"
)

// What a refusal means where Glance's own words do not say what to do next.
var (
	errLimits = failure.Permanently(errors.New("the image exceeds a limit of this Glance (image_property_quota, image_tag_quota, or the project's quota): raise it, or trim the image at its source"))
	errMade   = failure.Permanently(errors.New("this user may not make such an image: Glance's policies add_image, and for another project's image the admin role, decide"))
	errKept   = failure.Permanently(errors.New("the image may not be deleted: it is protected, or another project's; openstack image set --unprotected, or let its owner delete it"))
)

// Create makes a queued image from i's id and metadata. It is private, hidden and
// not protected, whatever i says, until Finish: nobody is offered what is not proven.
// It belongs to i.Owner, or to this user's project when that is empty.
// glance.ErrIDUsed.
func (c *Catalog) Create(ctx context.Context, i glance.Image) (glance.Image, error) {
	doing := "create image " + string(i.ID)
	attributes, err := attributesOf(i)
	if err != nil {
		return glance.Image{}, fmt.Errorf("%s: %w", doing, failure.Permanently(err))
	}
	body, err := json.Marshal(attributes)
	if err != nil {
		return glance.Image{}, fmt.Errorf("%s: %w", doing, err)
	}
	made, err := get[image](ctx, c, request{
		doing:       doing,
		method:      http.MethodPost,
		path:        "images",
		contentType: asJSON,
		body:        body,
		means: map[int]error{
			http.StatusConflict:              glance.ErrIDUsed,
			http.StatusForbidden:             errMade,
			http.StatusRequestEntityTooLarge: errLimits,
		},
	})
	return glance.Image(made), err
}

// attributesOf returns the attributes of the image that Create makes. A property
// with the name of an attribute is refused: it comes from another site, which must
// not reach Glance's own attributes here.
func attributesOf(i glance.Image) (map[string]any, error) {
	a := map[string]any{
		"id":         i.ID,
		"min_disk":   i.MinDisk,
		"min_ram":    i.MinRAM,
		"visibility": "private",
		"os_hidden":  true,
		"protected":  false,
	}
	for name, v := range map[string]string{
		"name": i.Name, "disk_format": i.DiskFormat, "container_format": i.ContainerFormat, "owner": i.Owner,
	} {
		if v != "" {
			a[name] = v
		}
	}
	if len(i.Tags) > 0 {
		a["tags"] = i.Tags
	}
	for name, v := range i.Properties {
		if isManaged(name) {
			return nil, fmt.Errorf("property %q is an attribute of Glance's own", name)
		}
		a[name] = v
	}
	return a, nil
}

// Adopt gives an image that is queued, as now says, the metadata that Create would have
// given want, and returns it as it then is. Nothing is sent where nothing differs.
// glance.ErrNoImage.
func (c *Catalog) Adopt(ctx context.Context, now, want glance.Image) (glance.Image, error) {
	doing := "take over image " + string(now.ID)
	if _, err := attributesOf(want); err != nil {
		return glance.Image{}, fmt.Errorf("%s: %w", doing, failure.Permanently(err))
	}
	var changes []change
	replace := func(same bool, name string, value any) {
		if !same {
			changes = append(changes, change{"replace", "/" + name, value})
		}
	}
	replace(now.Name == want.Name, "name", want.Name)
	replace(now.DiskFormat == want.DiskFormat, "disk_format", want.DiskFormat)
	replace(now.ContainerFormat == want.ContainerFormat, "container_format", want.ContainerFormat)
	replace(now.MinDisk == want.MinDisk, "min_disk", want.MinDisk)
	replace(now.MinRAM == want.MinRAM, "min_ram", want.MinRAM)
	replace(slices.Equal(slices.Sorted(slices.Values(now.Tags)), slices.Sorted(slices.Values(want.Tags))), "tags", append([]string{}, want.Tags...))
	for name, value := range want.Properties {
		had, there := now.Properties[name]
		switch {
		case !there:
			changes = append(changes, change{"add", "/" + pointer.Replace(name), value})
		case had != value:
			changes = append(changes, change{"replace", "/" + pointer.Replace(name), value})
		}
	}
	for name := range now.Properties {
		if _, kept := want.Properties[name]; !kept {
			changes = append(changes, change{Op: "remove", Path: "/" + pointer.Replace(name)})
		}
	}
	if len(changes) == 0 {
		return now, nil
	}
	return c.patch(ctx, doing, now.ID, changes)
}

// pointer escapes the name of a property for a JSON pointer (RFC 6901).
var pointer = strings.NewReplacer("~", "~0", "/", "~1")

// Finish sets what may not be set before the content is proven: visibility, hidden,
// protected, and removes glance.PropJob, all at once or, on an error, nothing. It
// returns the image as it then is, and may be repeated.
func (c *Catalog) Finish(ctx context.Context, i glance.Image) (glance.Image, error) {
	doing := "finish image " + string(i.ID)
	now, err := c.Image(ctx, i.ID)
	if err != nil {
		return glance.Image{}, fmt.Errorf("%s: %w", doing, err)
	}
	if now.Status != glance.Active && now.Status != glance.Deactivated {
		return glance.Image{}, fmt.Errorf("%s: it is %s, not active", doing, now.Status)
	}
	var changes []change
	if i.Visibility != "" && i.Visibility != now.Visibility {
		changes = append(changes, change{"replace", "/visibility", i.Visibility})
	}
	if i.Hidden != now.Hidden {
		changes = append(changes, change{"replace", "/os_hidden", i.Hidden})
	}
	if _, ours := now.Properties[glance.PropJob]; ours {
		changes = append(changes, change{Op: "remove", Path: "/" + glance.PropJob})
	}
	if i.Protected != now.Protected {
		changes = append(changes, change{"replace", "/protected", i.Protected})
	}
	if len(changes) == 0 {
		return now, nil
	}
	return c.patch(ctx, doing, i.ID, changes)
}

// change is one operation of a JSON patch.
type change struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"` // an empty interface is left out, false is not
}

func (c *Catalog) patch(ctx context.Context, doing string, id glance.ImageID, changes []change) (glance.Image, error) {
	body, err := json.Marshal(changes)
	if err != nil {
		return glance.Image{}, fmt.Errorf("%s: %w", doing, err)
	}
	i, err := get[image](ctx, c, request{
		doing:       doing,
		method:      http.MethodPatch,
		path:        imagePath(id),
		contentType: asPatch,
		body:        body,
		means:       map[int]error{http.StatusNotFound: glance.ErrNoImage, http.StatusForbidden: denied(changes)},
	})
	return glance.Image(i), err
}

// denied says which of Glance's policies forbids the changes.
func denied(changes []change) error {
	policy := "modify_image"
	for _, ch := range changes {
		switch ch.Value {
		case "public":
			policy = "publicize_image"
		case "community":
			policy = "communitize_image"
		}
	}
	return failure.Permanently(fmt.Errorf("Glance's policy %s forbids it to this user: give the user the admin role on its project, or allow it in policy.yaml", policy))
}

// Delete removes an image; nil when it is gone already. Protection is lifted only
// from an image that carries glance.PropJob: one that this program is making.
func (c *Catalog) Delete(ctx context.Context, id glance.ImageID) error {
	doing := "delete image " + string(id)
	err := c.unprotect(ctx, doing, id)
	if err == nil {
		err = c.remove(ctx, doing, id)
	}
	if errors.Is(err, glance.ErrNoImage) {
		return nil
	}
	return err
}

// unprotect lifts the protection of an image that this program is making.
func (c *Catalog) unprotect(ctx context.Context, doing string, id glance.ImageID) error {
	now, err := c.Image(ctx, id)
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	if _, ours := now.Properties[glance.PropJob]; ours && now.Protected {
		_, err = c.patch(ctx, doing, id, []change{{"replace", "/protected", false}})
	}
	return err
}

func (c *Catalog) remove(ctx context.Context, doing string, id glance.ImageID) error {
	resp, err := c.send(ctx, request{
		doing:  doing,
		method: http.MethodDelete,
		path:   imagePath(id),
		means:  map[int]error{http.StatusNotFound: glance.ErrNoImage, http.StatusForbidden: errKept},
	})
	if err != nil {
		return err
	}
	return resp.Body.Close()
}
