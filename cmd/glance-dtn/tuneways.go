package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/glance-dtn/glance-dtn/nfs"
	"github.com/glance-dtn/glance-dtn/nfs/host"
	"github.com/glance-dtn/glance-dtn/nfs/mounted"
	"github.com/glance-dtn/glance-dtn/nfs/probe"
	"github.com/glance-dtn/glance-dtn/tuning/nfssweep"
)

// nfsTarget is what is to be tuned: a mount, an export of this host, or neither, but a
// server's export.
type nfsTarget struct {
	source  string      // HOST:/EXPORT
	dir     string      // the mount point, or the exported directory; empty for neither
	mount   bool        // dir is a mount point
	options nfs.Options // to mount the source with
	granted nfs.MountOptions
	export  nfs.Options // of the exported directory's first client; nil: not exported here
}

// findTarget finds out what the argument names.
func findTarget(ctx context.Context, h *host.Host, name, options string) (nfsTarget, error) {
	given := nfs.ParseOptions(options)
	if _, err := given.Mount(); err != nil {
		return nfsTarget{}, usagef("--options: %w", err)
	}
	if _, _, err := nfs.SplitSource(name); err == nil {
		return nfsTarget{source: name, options: given}, nil
	}
	dir, err := filepath.Abs(name)
	if err != nil {
		return nfsTarget{}, err
	}
	state, err := h.Read(ctx)
	if err != nil {
		return nfsTarget{}, err
	}
	m, err := state.At(dir)
	if err == nil {
		granted, err := m.Effective().Mount()
		if err != nil {
			return nfsTarget{}, fmt.Errorf("options of %s: %w", dir, err)
		}
		return nfsTarget{source: m.Source, dir: dir, mount: true, options: m.Again().With(given...), granted: granted}, nil
	}
	for _, e := range state.Exports {
		if e.Path == dir {
			return nfsTarget{source: nfs.JoinSource("127.0.0.1", dir), dir: dir, options: given, export: e.Clients[0].Options}, nil
		}
	}
	if fault := noDirectory(state, dir); fault != nil {
		return nfsTarget{}, usagef("%w: want an NFS mount or an export of this host, or HOST:/EXPORT, where EXPORT begins with /", fault)
	}
	for _, e := range state.Exports {
		if strings.HasPrefix(dir, strings.TrimSuffix(e.Path, "/")+"/") {
			return nfsTarget{}, usagef("%s lies in %s, which this host exports: name that", dir, e.Path)
		}
	}
	if state.ExportsFault != nil {
		return nfsTarget{}, fmt.Errorf("%w; and whether this host exports it is not known: %w", err, state.ExportsFault)
	}
	return nfsTarget{}, fmt.Errorf("%w; nor does this host export it: name an NFS mount, an export of this host, or HOST:/EXPORT", err)
}

// noDirectory says why dir is no directory, if it is none. It does not touch an NFS
// mount, whose server may not answer.
func noDirectory(s host.State, dir string) error {
	if m, found := nfs.Covering(s.Mounts, dir); found && nfs.IsNFS(m.Type) {
		return nil
	}
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s does not exist", dir)
	case err == nil && !info.IsDir():
		return fmt.Errorf("%s is no directory", dir)
	}
	return nil
}

// allows refuses what the target cannot have.
func (t nfsTarget) allows(f nfsTuning) error {
	switch {
	case f.way == "live" && !t.mount:
		return usagef("--way live reads through a mount: name its mount point, not %s", t.source)
	case len(f.servers) > 0 && t.export == nil:
		return usagef("--server: only the DTN itself can change its export: run this there, with the exported directory")
	case f.apply && t.export != nil && !f.async:
		return usagef("--apply: rsize and wsize are the client's: run this on the controller, with the mount point; the export is made async by --accept-async alone")
	}
	mode, other := t.other(f)
	switch {
	case f.apply && other && mode == nfssweep.Async && !f.async:
		return usagef("--apply --client async: %s is mounted sync; as async it acknowledges what the server has not got, and a crash of this host loses what programs have not synced: say --accept-async to have it so, or leave --client async away", t.dir)
	case f.async && t.export == nil && !(other && mode == nfssweep.Async):
		return usagef("--accept-async is for the DTN, with the exported directory, or for a sync mount with --client async")
	case f.async && t.export != nil && !(slices.Contains(f.servers, "sync") && slices.Contains(f.servers, "async")):
		return usagef("--accept-async: measure both, with --server sync,async")
	}
	return nil
}

// other is the mode of the client that the advice is for where the mount is in the other
// one, which --apply changes.
func (t nfsTarget) other(f nfsTuning) (nfssweep.Mode, bool) {
	mode := t.client()
	if len(f.clients) > 0 {
		mode = inForce(mode, words[nfssweep.Mode](f.clients))
	}
	return mode, t.mount && (mode == nfssweep.Sync) != t.granted.Sync
}

// client is the mode that the target is mounted in, or would be.
func (t nfsTarget) client() nfssweep.Mode {
	if mountOptions(t.options).Sync {
		return nfssweep.Sync
	}
	return nfssweep.Async
}

// server is the mode that the server is in, empty if that is not known, and how it
// was found out.
func (t nfsTarget) server(ctx context.Context, left *leftovers) (mode nfssweep.Mode, notes []string) {
	if t.export != nil {
		if e, err := t.export.Export(); err == nil && e.Sync {
			return nfssweep.Sync, nil
		}
		return nfssweep.Async, nil
	}
	unknown := func(why any) (nfssweep.Mode, []string) {
		return "", []string{fmt.Sprintf("The server was measured as it is; whether that is sync or async is not known: %v", why)}
	}
	p, err := t.dial(ctx, 1, left)
	if err != nil {
		return unknown(err)
	}
	defer p.Close()
	r, err := p.SyncClass(ctx)
	switch {
	case err != nil:
		return unknown(err)
	case r.Class == probe.SyncUnknown:
		return unknown(r.Reason)
	}
	return nfssweep.Mode(r.Class.String()), []string{fmt.Sprintf("The server was measured as it is, which seems to be %v: %s", r.Class, r.Reason)}
}

// patience is how long a server may pause, where a hard mount would wait for ever.
const patience = time.Minute

// dial connects a probe to the target, whose scratch files are noted; nil: it makes none.
func (t nfsTarget) dial(ctx context.Context, connections int, left *leftovers) (*probe.Probe, error) {
	o, err := t.probeOptions()
	if err != nil {
		return nil, err
	}
	o.Connections = connections
	if left != nil {
		o.Making, o.Gone = left.making(t), left.gone(t)
	}
	return probe.Dial(ctx, o)
}

// probeOptions name the target, and this process as its user.
func (t nfsTarget) probeOptions() (probe.Options, error) {
	name, dir, err := nfs.SplitSource(t.source)
	if err != nil {
		return probe.Options{}, err
	}
	groups, err := os.Getgroups()
	if err != nil {
		return probe.Options{}, err
	}
	m := mountOptions(t.options.With("vers=3")) // which has other ports than 4
	o := probe.Options{
		Host: name, Export: dir, NFSPort: m.Port, MountPort: m.MountPort, Timeout: patience,
		UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), ReservedPort: os.Geteuid() == 0,
	}
	for _, g := range groups[:min(len(groups), 16)] { // as many as AUTH_SYS carries
		o.GIDs = append(o.GIDs, uint32(g))
	}
	return o, nil
}

// advised are the options that the advice is.
func advised(a nfssweep.Advice) nfs.Options {
	o := nfs.Options{fmt.Sprintf("rsize=%d", a.RSize), fmt.Sprintf("wsize=%d", a.WSize)}
	if a.Version != "" {
		o = append(o, "vers="+a.Version)
	}
	if a.NConnect != 0 {
		o = append(o, fmt.Sprintf("nconnect=%d", a.NConnect))
	}
	return o
}

// now are the options that a mount has of those that the advice is.
func (t nfsTarget) now(a nfssweep.Advice) nfs.Options {
	if !t.mount {
		return nil
	}
	has := nfssweep.Advice{RSize: t.granted.RSize, WSize: t.granted.WSize}
	if a.Version != "" {
		has.Version = t.granted.Version
	}
	if a.NConnect != 0 {
		has.NConnect = t.granted.NConnect
	}
	return advised(has)
}

// wishes are what the advice asks of the target.
func (t nfsTarget) wishes(f *nfsTuning, a nfssweep.Advice) []host.Wish {
	if t.export != nil {
		if f.async && a.AsyncGain > 0 {
			return []host.Wish{{Export: t.dir, Options: nfs.Options{"async"}}}
		}
		return nil
	}
	o := advised(a)
	if mode, other := t.other(*f); other {
		o = append(o, string(mode))
	}
	return []host.Wish{{Mount: t.dir, Options: o}}
}

// with lets use measure in the way that the flags say, and leaves everything as it
// was. The export is changed only where --server names modes.
func (t *nfsTuning) with(ctx context.Context, h *host.Host, target nfsTarget, use func(nfssweep.Measure) error) error {
	way := map[string]func(context.Context, *host.Host, nfsTarget, func(nfssweep.Measure) error) error{
		"probe": t.byProbe, "scratch": t.byScratch, "live": t.byLive,
	}[t.way]
	if len(t.servers) == 0 {
		return way(ctx, h, target, use)
	}
	server := host.New(sweepState(t.state))
	undo := func() error {
		_, err := server.Undo(context.WithoutCancel(ctx), false)
		return err
	}
	err := way(ctx, h, target, func(measure nfssweep.Measure) error {
		return use(func(ctx context.Context, s nfssweep.Setting) (nfssweep.Sample, error) {
			if err := export(ctx, server, target.dir, s.Server); err != nil {
				return nfssweep.Sample{}, err
			}
			return measure(ctx, s)
		})
	})
	if back := undo(); back != nil {
		err = errors.Join(err, fmt.Errorf("put back the export (glance-dtn tune nfs --undo tries again): %w", back))
	}
	return err
}

// export has the directory exported in this mode, until the next exportfs -r or start of
// the server: a sweep that is killed leaves nothing that lasts.
func export(ctx context.Context, h *host.Host, dir string, mode nfssweep.Mode) error {
	state, err := h.Read(ctx)
	if err != nil {
		return err
	}
	changes, err := host.Plan(state, host.Wish{Export: dir, Options: nfs.Options{string(mode)}})
	if err != nil {
		return err
	}
	for i := range changes {
		changes[i].File, changes[i].Text, changes[i].Lasts = "", "", false
	}
	_, err = h.Apply(ctx, changes, host.Options{})
	return err
}

// depth is how many calls of a probe are outstanding: as many as a busy mount has.
const depth = 16

// byProbe measures without a mount.
func (t *nfsTuning) byProbe(ctx context.Context, _ *host.Host, target nfsTarget, use func(nfssweep.Measure) error) (err error) {
	p := &probing{t: t, probes: map[int]*probe.Probe{}, reads: map[nfssweep.Data]prepared{}}
	defer func() { err = errors.Join(err, p.close()) }()
	counts := orOne(t.space.NConnect)
	for _, n := range counts {
		if p.probes[n], err = target.dial(ctx, max(n, 1), t.left); err != nil {
			delete(p.probes, n)
			return err
		}
	}
	first := p.probes[counts[0]]
	info, err := first.Info(ctx, 1)
	if err != nil {
		return err
	}
	p.limits = info.Limits
	if err := t.fits(info.Space.Avail, target.source); err != nil {
		return err
	}
	return refused(first.Scratch(ctx, func(f *probe.File) error {
		p.writes = f
		return p.prepare(ctx, first, t.space.Data, func() error { return use(p.measure) })
	}))
}

// probing is a probe for each number of connections, and the scratch files that they
// share: one to write to and, for each kind of data, one to read.
type probing struct {
	t      *nfsTuning
	limits probe.Limits
	probes map[int]*probe.Probe
	writes *probe.File
	reads  map[nfssweep.Data]prepared
}

// prepared is a file to read, of which so much was written.
type prepared struct {
	file  *probe.File
	bytes int64
}

func (p *probing) close() error {
	var all []error
	for _, x := range p.probes {
		all = append(all, x.Close())
	}
	return errors.Join(all...)
}

// prepare makes a file to read for each kind of data, calls use and removes them.
func (p *probing) prepare(ctx context.Context, by *probe.Probe, kinds []nfssweep.Data, use func() error) error {
	if len(kinds) == 0 {
		return use()
	}
	return by.Scratch(ctx, func(f *probe.File) error {
		r, err := bounded(p.t, func(total int64) (probe.Result, error) {
			return f.Write(ctx, probe.WriteTest{Size: 1 << 20, Total: total, Depth: depth, Stability: probe.Unstable, Commit: true, Data: contents(kinds[0])})
		}, func(r probe.Result) time.Duration { return r.Elapsed })
		if err != nil {
			return err
		}
		p.reads[kinds[0]] = prepared{f, r.Bytes}
		return p.prepare(ctx, by, kinds[1:], use)
	})
}

func (p *probing) measure(ctx context.Context, s nfssweep.Setting) (nfssweep.Sample, error) {
	by := p.probes[s.NConnect]
	read := p.reads[s.Data]
	granted := nfs.GrantedSize(s.Size, p.limits.ReadMax)
	run := func(total int64) (probe.Result, error) {
		return read.file.On(by).Read(ctx, probe.ReadTest{Size: int(granted), Total: min(total, read.bytes), Depth: depth})
	}
	if s.Op == nfssweep.Write {
		granted = nfs.GrantedSize(s.Size, p.limits.WriteMax)
		run = func(total int64) (probe.Result, error) {
			w := probe.WriteTest{Size: int(granted), Total: total, Depth: depth, Stability: probe.Unstable, Commit: true, Data: contents(s.Data)}
			if s.Client == nfssweep.Sync {
				w.Stability, w.Commit = probe.FileSync, false
			}
			return p.writes.On(by).Write(ctx, w)
		}
	}
	r, err := bounded(p.t, run, func(r probe.Result) time.Duration { return r.Elapsed })
	return nfssweep.Sample{Rate: r.Rate(), Granted: granted}, err
}

// bounded moves t.bytes, or a 16th of it where the whole would take longer than t.limit:
// so much is moved first, to see that.
func bounded[R any](t *nfsTuning, move func(total int64) (R, error), elapsed func(R) time.Duration) (R, error) {
	const share = 16
	if t.limit == 0 {
		return move(t.bytes)
	}
	r, err := move(max(t.bytes/share, 1))
	if err == nil && elapsed(r)*share <= t.limit {
		r, err = move(t.bytes)
	}
	return r, err
}

// write is mounted.Write of a new file within t.limit. That counts the time in which what
// the client has cached goes to the server, too.
func (t *nfsTuning) write(ctx context.Context, name string, zeros bool) (mounted.Result, error) {
	return bounded(t, func(total int64) (mounted.Result, error) {
		if err := removeIfThere(name); err != nil {
			return mounted.Result{}, err
		}
		return mounted.Write(ctx, name, mounted.Test{Bytes: total, Zeros: zeros})
	}, func(r mounted.Result) time.Duration { return r.Elapsed })
}

func contents(d nfssweep.Data) probe.Data {
	if d == nfssweep.Zero {
		return probe.Zero
	}
	return probe.Random
}

func orOne(connections []int) []int {
	if len(connections) == 0 {
		return []int{0}
	}
	return connections
}

// byScratch measures through a mount of its own for each measurement. Its files are
// removed with the leftovers.
func (t *nfsTuning) byScratch(ctx context.Context, h *host.Host, target nfsTarget, use func(nfssweep.Measure) error) error {
	base := target.options.With("rw")
	id := scratchName()
	toRead := func(d nfssweep.Data) string { return fmt.Sprintf("%s-%s", id, d) }
	mount := func(ctx context.Context, o nfs.Options, do func(dir string) error) error {
		return h.Scratch(ctx, target.source, o, func(dir string) error {
			return refused(do(dir))
		})
	}
	err := mount(ctx, base, func(dir string) error {
		if err := errors.Join(removeOld(dir), t.hasRoom(dir, target.source)); err != nil {
			return err
		}
		making := t.left.making(target)
		if err := making(id); err != nil {
			return err
		}
		for _, d := range t.space.Data {
			if err := making(toRead(d)); err != nil {
				return err
			}
			if _, err := t.write(ctx, filepath.Join(dir, toRead(d)), d == nfssweep.Zero); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return use(func(ctx context.Context, s nfssweep.Setting) (sample nfssweep.Sample, err error) {
		o := t.mountWith(base, s)
		err = mount(ctx, o, func(dir string) error {
			granted, err := grantedAt(dir, o, s)
			if err != nil {
				return err
			}
			var r mounted.Result
			if s.Op == nfssweep.Read {
				r, err = mounted.Read(ctx, filepath.Join(dir, toRead(s.Data)), mounted.Test{Bytes: t.bytes, Limit: t.limit})
				sample.Granted = granted.RSize
			} else {
				name := filepath.Join(dir, id)
				r, err = t.write(ctx, name, s.Data == nfssweep.Zero)
				err = errors.Join(err, removeIfThere(name))
				sample.Granted = granted.WSize
			}
			sample.Rate = r.Rate()
			return err
		})
		return sample, err
	})
}

// refused says of an error that is fs.ErrPermission what to do about it.
func refused(err error) error {
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	cure := "run this as a user who may"
	if os.Geteuid() == 0 {
		cure = "the NFS server makes nobody of root (root_squash): export it with no_root_squash to this host until it is measured, or measure with --way probe HOST:/EXPORT as a user who may"
	}
	return fmt.Errorf("%w: this user may not make files in the exported directory; %s", err, cure)
}

// mountWith returns the options of a mount for one setting.
func (t *nfsTuning) mountWith(base nfs.Options, s nfssweep.Setting) nfs.Options {
	o := base.With(fmt.Sprintf("rsize=%d", s.Size), fmt.Sprintf("wsize=%d", s.Size))
	if s.Client != "" {
		o = o.With(string(s.Client))
	}
	if s.Version != "" {
		o = o.With("vers=" + s.Version)
	}
	if s.NConnect != 0 {
		o = o.With(fmt.Sprintf("nconnect=%d", s.NConnect))
	}
	return o
}

// grantedAt returns the options that hold for a mount. It fails where those that the
// setting is about, the size aside, are others: the measurement would be of them.
func grantedAt(dir string, asked nfs.Options, s nfssweep.Setting) (nfs.MountOptions, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nfs.MountOptions{}, err
	}
	defer f.Close()
	mounts, err := nfs.ParseMountinfo(f)
	if err != nil {
		return nfs.MountOptions{}, err
	}
	m, _ := nfs.Covering(mounts, dir)
	differences, err := nfs.Differences(asked, m.Effective())
	if err != nil {
		return nfs.MountOptions{}, err
	}
	for _, d := range differences {
		switch {
		case d.Option == "nconnect" && s.NConnect != 0:
			return nfs.MountOptions{}, fmt.Errorf("%v: mounts of one server share its connections; compare them while it is not mounted otherwise, or with --way probe", d)
		case d.Option == "vers" && s.Version != "", d.Option == "sync":
			return nfs.MountOptions{}, errors.New(d.String())
		}
	}
	return m.Effective().Mount()
}

// removeOld removes what sweeps that were killed more than a day ago have left, those of
// other hosts too.
func removeOld(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		ours := strings.HasPrefix(e.Name(), mounted.Prefix) || strings.HasPrefix(e.Name(), probe.ScratchPrefix)
		if err == nil && ours && time.Since(info.ModTime()) > 24*time.Hour {
			err = os.Remove(filepath.Join(dir, e.Name()))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// hasRoom fails where the files of a sweep do not fit.
func (t *nfsTuning) hasRoom(dir, source string) error {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return fmt.Errorf("free space of %s: %w", source, err)
	}
	return t.fits(int64(s.Bavail)*s.Bsize, source)
}

// fits fails where one file to write to, and one to read for each kind of data, do not fit.
func (t *nfsTuning) fits(avail int64, source string) error {
	if need := t.bytes * int64(1+len(t.space.Data)); avail < need {
		return fmt.Errorf("%s has %s free, and %s are needed: make room, or set --size", source, size(avail), size(need))
	}
	return nil
}

// scratchName returns the name of a file that is not there.
func scratchName() string { return fmt.Sprintf("%s%016x", mounted.Prefix, rand.Uint64()) }

// byLive reads a file through the live mount.
func (t *nfsTuning) byLive(ctx context.Context, _ *host.Host, target nfsTarget, use func(nfssweep.Measure) error) error {
	name := t.file
	if name == "" {
		seek, stop := context.WithTimeout(ctx, seekTime)
		defer stop()
		var err error
		if name, err = largest(seek, target.dir); ctx.Err() != nil {
			return context.Cause(ctx)
		} else if err != nil {
			return err
		}
	} else if abs, err := filepath.Abs(name); err != nil || !strings.HasPrefix(abs, target.dir+"/") {
		return usagef("--file %s: want a file on %s", name, target.dir)
	}
	return use(func(ctx context.Context, s nfssweep.Setting) (nfssweep.Sample, error) {
		r, err := mounted.Read(ctx, name, mounted.Test{Bytes: t.bytes, Limit: t.limit})
		return nfssweep.Sample{Rate: r.Rate(), Granted: target.granted.RSize}, err
	})
}

// enough is how large a file has to be for a rate that means something, and seekTime
// how long one is looked for.
const (
	enough   = 16 << 20
	seekTime = 10 * time.Second
)

// largest returns the largest file below dir that is found before ctx ends.
func largest(ctx context.Context, dir string) (name string, err error) {
	var most int64
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return fs.SkipAll
		}
		if errors.Is(err, fs.ErrPermission) {
			return nil
		} else if err != nil {
			return err
		}
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() && info.Size() > most && readable(path) {
			name, most = path, info.Size()
		}
		return nil
	})
	if err == nil && most < enough {
		err = fmt.Errorf("no readable file of %s or more was found below %s: name one with --file, or use --way scratch", size(enough), dir)
	}
	return name, err
}

func readable(name string) bool { return unix.Access(name, unix.R_OK) == nil }
