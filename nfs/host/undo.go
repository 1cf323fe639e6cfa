package host

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/glance-dtn/glance-dtn/nfs"
)

// saved is what was there before a change: everything that is needed to put it back,
// whatever is there by then.
type saved struct {
	Kind    string      `json:"kind"` // KindExport or KindMount
	Target  string      `json:"target"`
	Client  string      `json:"client,omitempty"`
	Source  string      `json:"source,omitempty"`
	Options nfs.Options `json:"options"`
	Set     nfs.Options `json:"set,omitempty"` // what changes were to give an export instead

	File   string  `json:"file,omitempty"`    // of our own
	Text   *string `json:"text,omitempty"`    // of File; nil: there was none
	NewDir bool    `json:"new_dir,omitempty"` // File's directory was not there
}

func (s saved) key() string { return key(s.Kind, s.Target, s.Client) }

func (s saved) String() string {
	if s.Kind == KindExport {
		return fmt.Sprintf("Export %s to %s with %s.", s.Target, s.Client, s.Options)
	}
	return fmt.Sprintf("Have %s mounted at %s with %s.", s.Source, s.Target, s.Options)
}

// save tells what is there before a change, which must be what was planned for.
func (h *Host) save(now State, c Change) (saved, error) {
	s := saved{Kind: KindMount, Target: c.Target, Client: c.Client, Source: c.Source, Options: c.From, File: c.File}
	var holds nfs.Options
	if c.Kind == KindExport {
		s.Kind, s.Set = KindExport, without(c.To, c.From)
		holds, _ = now.exported(c.Target, c.Client)
	} else {
		m, err := now.At(c.Target)
		if err != nil {
			return saved{}, err
		}
		if m.Source == c.Source {
			holds = m.Again()
		}
	}
	if !slices.Equal(holds, c.From) {
		return saved{}, fmt.Errorf("%s is not any more as it was planned for: plan again", c.key())
	}
	if s.File == "" {
		return s, nil
	}
	text, found, err := h.own(s.File)
	if err != nil {
		return saved{}, err
	}
	if found {
		s.Text = &text
	} else {
		_, err := os.Stat(filepath.Dir(h.path(s.File)))
		s.NewDir = errors.Is(err, fs.ErrNotExist)
	}
	return s, nil
}

// merge adds what was there before further changes. What was there first stays, but for
// the mount of another source, which somebody has put into its place since; of a target
// that is changed again a file may be new, and what that was is added.
func merge(kept, further []saved) []saved {
	all := slices.Clone(kept)
	for _, s := range further {
		first := slices.IndexFunc(all, func(o saved) bool { return o.key() == s.key() })
		if first >= 0 {
			s.Set = slices.Concat(all[first].Set, without(s.Set, all[first].Set))
			if s.Source == all[first].Source {
				s.Options = all[first].Options
			}
			for i, o := range all {
				if o.key() == s.key() {
					all[i].Source, all[i].Options, all[i].Set = s.Source, s.Options, s.Set
				}
			}
		}
		if first >= 0 && (s.File == "" || slices.ContainsFunc(all, func(o saved) bool { return o.key() == s.key() && o.File == s.File })) {
			continue
		}
		all = append(all, s)
	}
	return all
}

func (h *Host) recordFile() string { return filepath.Join(h.dir, "undo.json") }

// kept reads the undo record.
func (h *Host) kept() ([]saved, error) {
	name := h.path(h.recordFile())
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("read the undo record: %w", err)
	}
	var all []saved
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&all); err != nil {
		return nil, fmt.Errorf("undo record %s cannot be read: %w: put back by hand what it names, then remove it", name, err)
	}
	return all, nil
}

// keep replaces the undo record.
func (h *Host) keep(all []saved) error {
	if len(all) == 0 {
		return h.sys.remove(h.recordFile(), false)
	}
	text, err := json.MarshalIndent(all, "", "  ")
	if err == nil {
		err = h.sys.write(h.recordFile(), string(text)+"\n")
	}
	if err != nil {
		return fmt.Errorf("write the undo record: %w", err)
	}
	return nil
}

// untouched is nil where nobody else has written to their files.
func (h *Host) untouched(all []saved) error {
	var faults []error
	seen := map[string]bool{"": true}
	for _, s := range all {
		if !seen[s.File] {
			_, _, err := h.own(s.File)
			faults = append(faults, err)
		}
		seen[s.File] = true
	}
	return errors.Join(faults...)
}

// putBack restores all of them, the last change first, and says what it did. One
// that fails does not keep the others from being restored. What somebody else has
// mounted meanwhile is left where it is, or else an error.
func (h *Host) putBack(ctx context.Context, all []saved, force, leave bool) ([]string, error) {
	var did []string
	var faults []error
	for _, s := range slices.Backward(all) {
		d, err := h.restore(ctx, s, force, leave)
		did = append(did, without(d, did)...) // one target may have two files
		if err != nil {
			faults = append(faults, fmt.Errorf("put back the %s: %w", s.key(), err))
		}
	}
	return did, errors.Join(faults...)
}

func (h *Host) restore(ctx context.Context, s saved, force, leave bool) (did []string, err error) {
	if s.File != "" {
		err = h.restoreFile(ctx, s)
	}
	var againErr error
	if s.Kind == KindExport {
		did, againErr = h.restoreExport(ctx, s)
	} else {
		did, againErr = h.restoreMount(ctx, s, force, leave)
	}
	return did, errors.Join(err, againErr)
}

func (h *Host) restoreFile(ctx context.Context, s saved) error {
	_, found, err := h.own(s.File)
	switch {
	case err != nil:
		return err
	case s.Text == nil:
		if s.File == path.Join(unitDir, UnitName(s.Target)) { // what systemctl enable has made of it
			err = h.sys.remove(path.Join(unitDir, wantedBy+".wants", UnitName(s.Target)), true)
		}
		if err == nil {
			err = h.sys.remove(s.File, s.NewDir)
		}
	case found: // else somebody has removed it
		err = h.sys.write(s.File, *s.Text)
	}
	if err == nil {
		err = h.reload(ctx, s.File)
	}
	return err
}

// restoreExport takes back those options that were changed, and keeps what others
// have done since.
func (h *Host) restoreExport(ctx context.Context, s saved) ([]string, error) {
	table, err := h.exports(ctx)
	if err != nil {
		return nil, err
	}
	now, found := State{Exports: table}.exported(s.Target, s.Client)
	if !found {
		return []string{fmt.Sprintf("%s is not exported to %s any more, and stays so.", s.Target, s.Client)}, nil
	}
	s.Options = takenBack(now, s.Options, s.Set)
	if slices.Equal(now, s.Options) {
		return nil, nil
	}
	if _, err := h.export(ctx, s.Target, s.Client, s.Options); err != nil {
		return nil, err
	}
	return []string{s.String()}, nil
}

// takenBack returns the options of now, with those of before for whatever set decides
// on: before itself, where nothing else has changed.
func takenBack(now, before, set nfs.Options) nfs.Options {
	others := func(o nfs.Options) nfs.Options { return without(o.With(set...), set) }
	stays := others(before)
	if len(without(others(now), stays))+len(without(stays, others(now))) == 0 {
		return before
	}
	return slices.Concat(others(now), without(before, stays))
}

// without returns the options of a that b has not.
func without(a, b nfs.Options) nfs.Options {
	return slices.DeleteFunc(slices.Clone(a), func(option string) bool { return slices.Contains(b, option) })
}

func (h *Host) restoreMount(ctx context.Context, s saved, force, leave bool) (did []string, err error) {
	for range 10 {
		mounts, err := h.mounts()
		if err != nil {
			return did, err
		}
		there := stack(mounts, s.Target)
		if len(there) == 0 {
			if len(did) > 0 {
				return did, fmt.Errorf("%s was mounted again, and somebody has unmounted it", s.Source)
			}
			if strings.HasPrefix(s.File, unitDir+"/") {
				if err := h.giveUp(ctx, s.Target); err != nil {
					return did, err
				}
			}
			if _, err := h.sys.run(ctx, "mount", "-t", "nfs", "-o", s.Options.String(), s.Source, s.Target); err != nil {
				return did, fmt.Errorf("nothing is mounted at %s now, undo again: %w", s.Target, err)
			}
			did = append(did, s.String())
			continue
		}
		top := there[len(there)-1]
		now := top.Again()
		other := top.Source != s.Source || !nfs.IsNFS(top.Type)
		switch {
		case other && leave:
			return append(did, fmt.Sprintf("Leave %s, which somebody else has mounted at %s.", top.Source, s.Target)), nil
		case other:
			return did, fmt.Errorf("%s of type %s is mounted at %s now: unmount it, then undo again", top.Source, top.Type, s.Target)
		case len(there) == 1 && slices.Equal(now, s.Options):
			return did, nil
		case len(did) > 0:
			return append(did, fmt.Sprintf("The kernel grants %s, no more %s.", only(now, s.Options), only(s.Options, now))), nil
		case len(there) == 1 && remountable(now, s.Options):
			err = h.remount(ctx, s.Source, s.Target, s.Options)
			did = append(did, s.String())
		default:
			err = h.unmount(ctx, top, force)
			ctx = context.WithoutCancel(ctx) // an interrupt leaves no mount point empty
		}
		if err != nil {
			return did, err
		}
	}
	return did, fmt.Errorf("what is mounted at %s changes again and again: find out who else does it", s.Target)
}
