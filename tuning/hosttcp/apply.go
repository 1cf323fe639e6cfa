package hosttcp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Apply sets what is [ToSet] in the changes, in their order, at once and for the host's
// next start, and returns them all with what became of each. A setting that the kernel
// does not take is told as [Refused] or [NotPermitted] and keeps its value; the others
// are set. It fails before it sets anything where one is not any more as it was planned
// for, and where somebody else has written to our own file; where it fails later, or ctx
// ends, everything is as it was, or the error says so and Undo is to be tried again.
func (h *Host) Apply(ctx context.Context, changes []Change) ([]Change, error) {
	if kept, err := h.kept(); err != nil {
		return nil, err
	} else if len(kept.Settings) == 0 && !slices.ContainsFunc(changes, func(c Change) bool { return c.Status == ToSet }) {
		return changes, nil
	}
	lock, err := h.lock()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	kept, err := h.kept()
	if err == nil {
		err = h.untouched()
	}
	if err != nil {
		return nil, err
	}
	all, err := h.inForce(kept)
	if err != nil {
		return nil, err
	}
	if len(kept.Settings) == 0 {
		_, err := os.Stat(h.path(ownDir))
		all.NewDir = errors.Is(err, fs.ErrNotExist)
	}
	for _, c := range changes {
		if c.Status != ToSet {
			continue
		}
		v, err := h.value(c.Key)
		if err != nil {
			return nil, err
		}
		if v.Status != "" || !same(c.Key, v.Text, c.From) {
			return nil, fmt.Errorf("%s is not any more as it was planned for: plan again", c.Key)
		}
		all.add(c.Key, v.Text, c.To)
	}
	if err := h.keep(all); err != nil {
		return nil, err
	}
	changes = slices.Clone(changes)
	for i := range changes {
		if err = ctx.Err(); err != nil {
			break
		}
		if changes[i].Status == ToSet {
			all.settle(changes[i].Key, h.apply(&changes[i]))
		}
	}
	if err == nil {
		err = h.lasting(all)
	}
	if err == nil {
		err = h.keep(all)
	}
	if err == nil {
		return changes, nil
	}
	back := h.takeBack(changes)
	if back == nil {
		back = errors.Join(h.lasting(record{kept.Settings, all.NewDir}), h.keep(kept))
	}
	if back != nil {
		return nil, fmt.Errorf("%w; and not everything could be put back, undo it again: %w", err, back)
	}
	return nil, fmt.Errorf("%w; everything is as it was", err)
}

// inForce returns the record of those settings that have what Apply gave them: of others
// there is nothing to put back, since an Apply was killed before it set them, or somebody
// else has.
func (h *Host) inForce(kept record) (record, error) {
	r := record{NewDir: kept.NewDir}
	for _, s := range kept.Settings {
		v, err := h.value(s.Key)
		if err != nil {
			return record{}, err
		}
		if s.holds(v.Text) {
			s.Set = []string{v.Text}
		}
		if s.holds(v.Text) || v.Status == Absent { // here
			r.Settings = append(r.Settings, s)
		}
	}
	return r, nil
}

// add notes that a setting is about to be changed. What it was first stays noted.
func (r *record) add(key, was, to string) {
	for i, s := range r.Settings {
		if s.Key == key {
			r.Settings[i].Set = []string{was, to}
			return
		}
	}
	r.Settings = append(r.Settings, saved{key, was, []string{to}})
}

// settle notes what a setting has now. One that is as it was before needs no note.
func (r *record) settle(key, now string) {
	r.Settings = slices.DeleteFunc(r.Settings, func(s saved) bool { return s.Key == key && same(key, s.Before, now) })
	for i, s := range r.Settings {
		if s.Key == key {
			r.Settings[i].Set = []string{now}
		}
	}
}

// apply sets one setting and returns what it has then, as the kernel tells it.
func (h *Host) apply(c *Change) (now string) {
	err := h.set(c.Key, c.To)
	c.Status = Set
	if err != nil {
		c.Status, c.Error = Refused, err.Error()
		if errors.Is(err, fs.ErrPermission) {
			c.Status = NotPermitted
		}
		if errors.Is(err, unix.EROFS) {
			c.Status = ReadOnly
		}
	}
	v, readErr := h.value(c.Key)
	switch {
	case readErr != nil && c.Status == Set:
		return c.To
	case readErr != nil:
		return c.From
	case c.Status == Set:
		c.To = v.Text // which may be less than what was asked for
	}
	return v.Text // the kernel may have taken a part of what it refused
}

// takeBack gives the settings what they had before Apply, the last one first.
func (h *Host) takeBack(changes []Change) error {
	var faults []error
	for _, c := range slices.Backward(changes) {
		if c.Status == Set || c.Error != "" {
			if err := h.set(c.Key, c.From); err != nil {
				faults = append(faults, fmt.Errorf("set %s back to %s: %w", c.Key, c.From, err))
			}
		}
	}
	return errors.Join(faults...)
}

// Undo puts back what there was before the first Apply since the last Undo, and returns
// in sentences what it did; nothing where there is nothing to undo. It may be repeated
// after an error. What somebody else has set since stays, and is told. Where somebody
// else has written to our own file it fails and does nothing.
func (h *Host) Undo() ([]string, error) {
	if kept, err := h.kept(); err != nil || len(kept.Settings) == 0 {
		return nil, err
	}
	lock, err := h.lock()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	kept, err := h.kept() // another Undo may have been faster
	if err == nil {
		err = h.untouched()
	}
	if err != nil {
		return nil, err
	}
	did, faults := []string{}, []error{}
	var rest []saved
	for _, s := range slices.Backward(kept.Settings) {
		says, doIt, err := h.undoing(s)
		if err == nil && doIt {
			err = h.set(s.Key, s.Before)
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("set %s back to %s: %w", s.Key, s.Before, err))
			rest = append([]saved{s}, rest...)
		} else if says != "" {
			did = append(did, says)
		}
	}
	if err := h.lasting(record{NewDir: kept.NewDir}); err != nil {
		return did, errors.Join(append(faults, err)...)
	}
	did = append(did, fmt.Sprintf("Remove %s.", ownFile()))
	return did, errors.Join(append(faults, h.keep(record{rest, kept.NewDir}))...)
}

// Undoable says in sentences what Undo would do; nothing where there is nothing.
func (h *Host) Undoable() (says []string, err error) {
	kept, err := h.kept()
	if err != nil || len(kept.Settings) == 0 {
		return nil, err
	}
	for _, s := range slices.Backward(kept.Settings) {
		line, _, err := h.undoing(s)
		if err != nil {
			return nil, err
		}
		if line != "" {
			says = append(says, line)
		}
	}
	return append(says, fmt.Sprintf("Remove %s.", ownFile())), nil
}

// undoing says what is to be done about one setting, and whether it is to be set.
func (h *Host) undoing(s saved) (says string, doIt bool, err error) {
	v, err := h.value(s.Key)
	switch {
	case err != nil:
		return "", false, err
	case v.Status == Absent:
		return fmt.Sprintf("Leave %s, which this kernel has no more.", s.Key), false, nil
	case same(s.Key, v.Text, s.Before):
		return "", false, nil
	case !s.holds(v.Text):
		return fmt.Sprintf("Leave %s at %s, which somebody else has set.", s.Key, v.Text), false, nil
	}
	return fmt.Sprintf("Set %s back to %s.", s.Key, s.Before), true, nil
}
