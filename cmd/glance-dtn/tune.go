package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/nfs"
	"github.com/glance-dtn/glance-dtn/nfs/host"
	"github.com/glance-dtn/glance-dtn/nfs/mounted"
	"github.com/glance-dtn/glance-dtn/nfs/probe"
	"github.com/glance-dtn/glance-dtn/tuning/nfssweep"
)

// tuneState is where --state is without that flag: what others than root do changes
// nothing on the host, and has what it notes with them.
func tuneState(what string) (string, error) {
	if os.Geteuid() == 0 {
		return filepath.Join("/var/lib/glance-dtn", what), nil
	}
	dir := os.Getenv("XDG_STATE_HOME")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("name a directory with --state: %w", err)
		}
		dir = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(dir, "glance-dtn", what), nil
}

func (c *cli) tune() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tune",
		Short: "Measure what a site's paths can do, and set what they are best with",
		Args:  noSuchCommand,

		SuggestionsMinimumDistance: 2,

		RunE: noCommand,
	}
	cmd.AddCommand(c.tuneNFS(), c.tuneTCP())
	return cmd
}

// nfsTuning is what the flags of tune nfs say.
type nfsTuning struct {
	way, search, size                   string
	sizes, servers, clients, data, vers []string
	nconnect                            []int
	reps                                int
	limit                               time.Duration
	options, file, state, csv, svg      string
	apply, undo, dryRun, force, async   bool
	seed                                uint64

	// What follows from them.
	bytes int64
	space nfssweep.Space
	left  *leftovers
}

func (c *cli) tuneNFS() *cobra.Command {
	var t nfsTuning
	cmd := &cobra.Command{
		Use:   "nfs {DIR | HOST:/EXPORT}",
		Short: "Find the rsize and wsize of the NFS mount between a controller and its DTN",
		Long: `nfs writes and reads files with each rsize and wsize, in an order that changes from
round to round, and advises the knee: the smallest size that is within 5 % of the
best one with a confidence of 95 %. DIR is the mount point on the controller, or the
exported directory on the DTN. Without --apply nothing stays changed. It takes about a
minute at 1 GB/s, 30 measurements of --size, and room for two files of that, or 32 MiB.

Three ways of measuring:
  probe    talks NFS 3 to the server itself, 16 calls at a time: needs neither root nor a mount.
           A client in the mode sync has FILE_SYNC writes, one in async UNSTABLE ones and a COMMIT
  scratch  mounts beside the live mount, for each measurement anew, so that the client has nothing
           cached: needs root
  live     reads a large file through the live mount at its own rsize, and writes nothing

HOST:/EXPORT is probed, DIR is measured by scratch as root, unless --way says another.
What the server has cached it may give from memory in all of them. Files named
` + mounted.Prefix + `* and ` + probe.ScratchPrefix + `* are made in the export
and removed; a limit of time ends slow measurements, which then have moved less.

Whether the server is sync or async is measured as it is, unless --server asks for
one or both, which only the DTN itself can have: there DIR is the exported directory.
The export is put back as it was.

--apply mounts DIR anew with the advice, and puts back the old mount if the new one
is slower. A mode that --client names alone is part of it, however fast it is.

With -o json and in the CSV sizes are in bytes and rates in bits per second (bps). Of a
size, asked is what the mount was asked for, granted what it got. Of a curve, best is the
size with the highest median, knee the advice, sure whether that has 95 % confidence.

--undo puts back what --apply has changed. It clears away what a sweep that was killed
has left, too, as the next sweep does.`,
		Example: `  glance-dtn tune nfs dtn-a.example.org:/export/glance
  glance-dtn tune nfs /mnt/dtn --way scratch --svg sweep.svg --apply
  glance-dtn tune nfs /export/glance --server sync,async --client sync,async --search exhaustive   # on the DTN
  glance-dtn tune nfs --undo`,
		Args: func(cmd *cobra.Command, got []string) error {
			if t.undo && len(got) == 0 {
				return nil
			} else if t.undo {
				return usagef("--undo puts back all that was changed on this host: leave %s away", got[0])
			}
			return args("DIR or HOST:/EXPORT")(cmd, got)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if t.state == "" {
				t.state, err = tuneState("nfs")
			}
			if err == nil {
				t.state, err = filepath.Abs(t.state)
			}
			if err != nil {
				return err
			}
			ctx, stop := untilHangup(cmd.Context())
			defer stop()
			if t.undo {
				err = c.undoNFS(ctx, t)
			} else if err = t.check(cmd, args[0]); err == nil {
				err = c.tuneTarget(ctx, t, args[0])
			}
			return interrupted(ctx, err)
		},
	}
	f := cmd.Flags()
	f.StringVar(&t.way, "way", "", "how to measure: probe, scratch or live (default scratch for DIR as root, else probe)")
	f.StringVar(&t.size, "size", "256MiB", "how much to write and to read each time")
	f.DurationVar(&t.limit, "limit", 30*time.Second, "about how long one measurement may take; 0: as long as it takes")
	f.StringSliceVar(&t.sizes, "sizes", nil, "rsize and wsize to try, as in 8K,64K,1M (default the powers of two from 1K to 1M)")
	f.IntVar(&t.reps, "reps", 3, "how often exhaustive measures each setting")
	f.StringVar(&t.search, "search", "smart", "smart: at most a third of the measurements, most of them near the knee, and not each size; exhaustive: all of them")
	f.StringSliceVar(&t.servers, "server", nil, "modes to have the export in: sync, async; on the DTN only (default as it is)")
	f.StringSliceVar(&t.clients, "client", nil, "modes to have the mount in: sync, async; with --apply one alone is what DIR is mounted with (default as it is, else async)")
	f.StringSliceVar(&t.vers, "vers", nil, "versions of NFS to mount with, as in 3,4.2; scratch only (default as DIR is mounted)")
	f.IntSliceVar(&t.nconnect, "nconnect", nil, "numbers of connections to try, 1 to 16 (default as DIR is mounted, else 1)")
	f.StringSliceVar(&t.data, "data", []string{"random"}, "what files are made of: random, zero")
	f.StringVar(&t.options, "options", "", "mount options besides those, as in nfs(5): with probe, port and mountport (default those of DIR)")
	f.StringVar(&t.file, "file", "", "live: the `FILE` to read (default the largest one below DIR)")
	f.Uint64Var(&t.seed, "seed", 1, "of the order of the measurements")
	f.StringVar(&t.csv, "csv", "", "write every measurement to `FILE`")
	f.StringVar(&t.svg, "svg", "", "draw the curves to `FILE`")
	f.BoolVar(&t.apply, "apply", false, "mount DIR with the advice")
	f.BoolVar(&t.async, "accept-async", false, "with --apply on the DTN: export DIR async if that is surely faster; the advice says what it risks. With --apply --client async: have a sync mount async")
	f.BoolVar(&t.force, "force", false, "with --apply and --undo: unmount lazily what is in use; with --undo: forget files that cannot be removed")
	f.BoolVar(&t.undo, "undo", false, "put back what --apply has changed, and what an interrupted sweep has left")
	f.BoolVar(&t.dryRun, "dry-run", false, "say what --apply or --undo would change, and change nothing")
	f.StringVar(&t.state, "state", "", "`DIR` of the undo record and of the scratch mount point (default /var/lib/glance-dtn/nfs as root, else ~/.local/state/glance-dtn/nfs)")
	for flag, words := range map[string][]string{
		"way": {"probe", "scratch", "live"}, "search": {"smart", "exhaustive"},
		"server": {"sync", "async"}, "client": {"sync", "async"}, "data": {"random", "zero"},
	} {
		complete(cmd, flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	}
	for flag := range strings.FieldsSeq("way search size limit sizes reps server client vers nconnect data options file seed csv svg apply accept-async") {
		cmd.MarkFlagsMutuallyExclusive("undo", flag) // beside which it means nothing
	}
	return cmd
}

// check finds what is wrong with the flags before anything is touched. Name is the
// argument.
func (t *nfsTuning) check(cmd *cobra.Command, name string) error {
	_, _, err := nfs.SplitSource(name)
	isSource := err == nil
	if t.way == "" {
		t.way = "probe"
		if os.Geteuid() == 0 && !isSource {
			t.way = "scratch"
		}
	}
	var faults []error
	fault := func(wrong bool, format string, args ...any) {
		if wrong {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	oneOf := func(flag string, got []string, words ...string) {
		for _, w := range got {
			fault(!slices.Contains(words, w), "--%s %s: want %s", flag, w, either(words))
		}
	}
	oneOf("way", []string{t.way}, "probe", "scratch", "live")
	oneOf("search", []string{t.search}, "smart", "exhaustive")
	oneOf("server", t.servers, "sync", "async")
	oneOf("client", t.clients, "sync", "async")
	oneOf("data", t.data, "random", "zero")
	t.bytes, err = mover.ParseSize(t.size)
	fault(err != nil || t.bytes < 1<<20, "--size %s: want a number of bytes, 1MiB at least, as in 256MiB", t.size)
	fault(t.limit < 0, "--limit %v: want 0 or more", t.limit)

	t.space = nfssweep.Space{
		Ops: []nfssweep.Op{nfssweep.Write, nfssweep.Read}, Sizes: nfssweep.Octaves(), Reps: t.reps,
		Servers: words[nfssweep.Mode](t.servers), Clients: words[nfssweep.Mode](t.clients),
		Versions: t.vers, NConnect: t.nconnect, Data: words[nfssweep.Data](t.data),
	}
	if len(t.sizes) > 0 {
		t.space.Sizes = nil
	}
	for _, s := range t.sizes {
		n, err := mover.ParseSize(s)
		if wrong := err != nil || nfs.GrantedSize(n, maxSize) != n; wrong {
			fault(wrong, "--sizes %s: want 1K, 2K, or a multiple of 4K up to 1M", s)
		} else {
			t.space.Sizes = append(t.space.Sizes, n)
		}
	}
	slices.Sort(t.space.Sizes)
	t.space.Sizes = slices.Compact(t.space.Sizes)
	fault(t.reps < 1, "--reps %d: want 1 at least", t.reps)
	rest := t.space // of which the flags are told above
	rest.Reps, rest.Sizes = 1, nfssweep.Octaves()
	if err := rest.Validate(); err != nil {
		faults = append(faults, err)
	}

	set := cmd.Flags().Changed
	for _, flag := range []string{"sizes", "server", "client", "vers", "nconnect", "data", "apply", "dry-run"} {
		fault(t.way == "live" && set(flag), "--%s: the live way measures the mount as it is; use --way scratch", flag)
	}
	fault(t.way != "live" && set("file"), "--file is for --way live")
	fault(t.way == "probe" && set("vers"), "--vers: the probe speaks NFS 3 only; use --way scratch")
	if m, err := nfs.ParseOptions(t.options).Mount(); err == nil && t.way == "probe" {
		fault(strings.HasPrefix(m.Version, "4"), "--options vers=%s: the probe speaks NFS 3 only; use --way scratch", m.Version)
	}
	fault(t.force && !t.apply, "--force is for --apply and --undo")
	fault(t.dryRun && set("server"), "--dry-run changes nothing, and --server changes the export while it measures: leave one of them away; without --apply nothing stays changed")
	for _, flag := range []string{"apply", "dry-run"} {
		fault(isSource && set(flag), "--%s is about a mount: name the mount point of %s", flag, name)
	}
	needsRoot := func(is bool, what string) {
		fault(is && os.Geteuid() != 0, "%s, which needs root: run it with sudo, or use --way probe alone", what)
	}
	needsRoot(t.way == "scratch", "--way scratch mounts a file system")
	needsRoot(t.apply && !t.dryRun && !isSource, "--apply changes mounts")
	needsRoot(set("server"), "--server changes the export")
	for flag, name := range map[string]string{"csv": t.csv, "svg": t.svg} {
		fault(name == "-", "--%s -: want the name of a file", flag)
		err := writable(name)
		fault(err != nil, "--%s: %w", flag, err)
	}
	if len(faults) > 0 {
		return usagef("%w", errors.Join(faults...))
	}
	return nil
}

// writable finds out, before a sweep that takes minutes, whether its result can be
// written. It leaves a file as it is, and makes none.
func writable(name string) error {
	if name == "" {
		return nil
	}
	_, err := os.Lstat(name)
	isNew := errors.Is(err, fs.ErrNotExist)
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o666)
	if err != nil {
		return err
	}
	err = f.Close()
	if isNew {
		err = errors.Join(err, os.Remove(name))
	}
	return err
}

// untilHangup ends a context when the terminal goes away too, as with a lost ssh
// session, unless nohup(1) says that this is nothing. A second one ends the process.
func untilHangup(ctx context.Context) (context.Context, context.CancelFunc) {
	if signal.Ignored(syscall.SIGHUP) {
		return ctx, func() {}
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGHUP)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

// interrupted says of an error that a signal has ended the work, and what besides that is
// wrong, which may be that something is not as it was.
func interrupted(ctx context.Context, err error) error {
	if err == nil || ctx.Err() == nil {
		return err
	}
	return &codeError{code: exitInterrupted, err: errors.Join(errInterrupted, besides(context.Cause(ctx), err))}
}

// besides returns the parts of an error that are not only the end of a context.
func besides(end, err error) error {
	if err == nil {
		return nil
	}
	switch e := err.(type) {
	case interface{ Unwrap() []error }:
		var rest []error
		for _, part := range e.Unwrap() {
			rest = append(rest, besides(end, part))
		}
		return errors.Join(rest...)
	case interface{ Unwrap() error }:
		if inner := e.Unwrap(); inner != nil && besides(end, inner) == nil {
			return nil
		}
	default:
		if errors.Is(err, end) || errors.Is(err, context.Canceled) {
			return nil
		}
	}
	return err
}

// either lists words as a sentence does: a, b or c.
func either(words []string) string {
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

func words[T ~string](list []string) []T {
	var all []T
	for _, w := range list {
		all = append(all, T(w))
	}
	return all
}

// maxSize is the largest rsize and wsize of Linux.
const maxSize = 1 << 20

func (c *cli) tuneTarget(ctx context.Context, t nfsTuning, name string) (err error) {
	if t.left, err = takeLeftovers(t.state); err != nil {
		return err
	}
	defer t.left.Close()
	h := host.New(t.state)
	if _, err := t.left.recover(ctx, h); err != nil {
		return err
	}
	var notes []string
	if _, err := t.left.remove(ctx, h); err != nil { // of another server, maybe, that is away
		notes = append(notes, fmt.Sprintf("Files of an earlier sweep are left: %v", err))
	}
	defer func() {
		_, left := t.left.remove(context.WithoutCancel(ctx), h)
		err = errors.Join(err, left)
	}()
	target, err := findTarget(ctx, h, name, t.options)
	if err != nil {
		return err
	}
	if err := target.allows(t); err != nil {
		return err
	}
	if t.apply || t.dryRun { // a refusal comes before the sweep
		some := nfssweep.Advice{RSize: 4 << 10, WSize: 4 << 10, AsyncGain: 1}
		if _, err := t.plan(ctx, h, target, some); err != nil {
			return err
		}
	}
	if len(t.servers) > 0 {
		if err := serverRuns(nfsdExports); err != nil {
			return err
		}
	}
	out := tuned{Source: target.source, Dir: target.dir, Way: t.way, Bytes: t.bytes, Started: time.Now(), Client: target.client(), DryRun: t.dryRun}
	if t.way != "live" {
		out.Server, out.Notes = target.server(ctx, t.left)
	}
	out.Notes = append(notes, out.Notes...)
	if mode, other := target.other(t); other {
		out.Notes = append(out.Notes, fmt.Sprintf("The advice is for a mount that is %s, as --client says; %s is not now, and --apply has it so.", mode, target.dir))
	}
	t.fill(target, out.Server, out.Client)

	bar, close := c.sweepBar()
	sweep := nfssweep.Search
	if t.search == "exhaustive" || t.way == "live" {
		sweep = nfssweep.Sweep
	}
	var seen []nfssweep.Observation
	err = t.with(ctx, h, target, func(measure nfssweep.Measure) (err error) {
		seen, err = sweep(ctx, t.space, measure, nfssweep.Options{Seed: t.seed, Progress: bar})
		return err
	})
	close()
	if len(seen) == 0 {
		return err
	}
	out.Seconds, out.Measurements = math.Round(time.Since(out.Started).Seconds()), len(seen)
	out.Report = nfssweep.Analyse(t.space, seen)
	if err != nil {
		out.Incomplete = err.Error()
		if ctx.Err() != nil {
			out.Incomplete = errInterrupted.Error()
		}
	}
	var files error // what cannot be written is no reason to lose the report
	keep := func(name string, write func(io.Writer) error) {
		if name == "" {
			return
		}
		if err := writeFile(name, write); err != nil {
			files = errors.Join(files, err)
			return
		}
		out.Notes = append(out.Notes, fmt.Sprintf("Written to %s.", name))
	}
	keep(t.csv, func(w io.Writer) error { return nfssweep.WriteCSV(w, seen) })
	keep(t.svg, func(w io.Writer) error { return nfssweep.WriteSVG(w, out.about(), out.Report) })
	if t.way != "live" && err == nil {
		out.Server, out.Client = inForce(out.Server, t.space.Servers), inForce(out.Client, t.space.Clients)
		out.Advice = out.Advise(out.Server, out.Client)
		out.Options, out.Now = advised(out.Advice), target.now(out.Advice)
		if t.apply || t.dryRun {
			out.Changes, out.Applied, err = t.change(ctx, h, target, out.Advice)
		}
	}
	return errors.Join(c.print(out, func() error { return c.tunedTable(out) }), files, err)
}

// nfsdExports is there where the kernel's NFS server is loaded.
const nfsdExports = "/proc/fs/nfs/exports"

// serverRuns fails where that is not: exportfs, which does not ask the kernel then, leaves
// out options, which would be lost when the export is put back.
func serverRuns(table string) error {
	if _, err := os.Stat(table); err != nil {
		return fmt.Errorf("--server: the kernel's NFS server does not run on this host, and without it exportfs does not tell all options of an export: start it first: %w", err)
	}
	return nil
}

// fill sets what the flags leave to what is in force.
func (t *nfsTuning) fill(target nfsTarget, server, client nfssweep.Mode) {
	s := &t.space
	if len(s.Servers) == 0 {
		s.Servers = []nfssweep.Mode{server}
	}
	if len(s.Clients) == 0 {
		s.Clients = []nfssweep.Mode{client}
	}
	if t.way == "live" {
		s.Ops, s.Data = []nfssweep.Op{nfssweep.Read}, nil
		s.Sizes = []int64{target.granted.RSize}
	}
}

// inForce is the mode that the advice is for: the one in force, if it was measured.
func inForce(mode nfssweep.Mode, measured []nfssweep.Mode) nfssweep.Mode {
	if slices.Contains(measured, mode) {
		return mode
	}
	return measured[0]
}

func writeFile(name string, write func(io.Writer) error) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

func (t *nfsTuning) plan(ctx context.Context, h *host.Host, target nfsTarget, a nfssweep.Advice) ([]host.Change, error) {
	state, err := h.Read(ctx)
	if err != nil {
		return nil, err
	}
	return host.Plan(state, target.wishes(t, a)...)
}

// change plans what the advice asks for, and does it unless it is a dry run.
func (t *nfsTuning) change(ctx context.Context, h *host.Host, target nfsTarget, a nfssweep.Advice) ([]host.Change, []host.Result, error) {
	changes, err := t.plan(ctx, h, target, a)
	if err != nil || t.dryRun {
		return changes, nil, err
	}
	o := host.Options{Force: t.force}
	if target.mount {
		before, err := t.trial(ctx, target)
		if err != nil {
			return changes, nil, fmt.Errorf("measure %s before it is changed: %w", target.dir, refused(err))
		}
		o.Accept = func(ctx context.Context) error {
			after, err := t.trial(ctx, target)
			if _, other := target.other(*t); err != nil || other {
				return err // a mode is not chosen for its speed
			}
			return before.slower(after)
		}
	}
	applied, err := h.Apply(ctx, changes, o)
	return changes, applied, err
}

// trial has the rates of files written and read through a live mount, in bits per second.
type trial struct{ writes, reads []float64 }

const trials = 3

func (t *nfsTuning) trial(ctx context.Context, target nfsTarget) (r trial, err error) {
	id := scratchName()
	if err := t.left.making(target)(id); err != nil {
		return r, err
	}
	name := filepath.Join(target.dir, id)
	for range trials {
		w, err := t.write(ctx, name, false)
		var read mounted.Result
		if err == nil {
			read, err = mounted.Read(ctx, name, mounted.Test{Bytes: t.bytes, Limit: t.limit})
		}
		if err := errors.Join(err, removeIfThere(name)); err != nil {
			return r, err
		}
		r.writes, r.reads = append(r.writes, w.Rate()), append(r.reads, read.Rate())
	}
	return r, nil
}

// slower returns an error if all of three measurements after are slower than all of three
// before by more than the 5 % that the advice may cost. Of writes or reads that are equal
// all three are slower once in 20 times by chance alone (Mann and Whitney 1947).
func (t trial) slower(after trial) error {
	for what, rates := range map[string][2][]float64{"write": {t.writes, after.writes}, "read": {t.reads, after.reads}} {
		if was, is := slices.Min(rates[0]), slices.Max(rates[1]); is < 0.95*was {
			return fmt.Errorf("it is slower: the fastest %s has %s, the slowest one had %s", what, nfssweep.MBs(is), nfssweep.MBs(was))
		}
	}
	return nil
}

// abreast is how many curves stand in one table: as many as 80 columns take.
const abreast = 4

// mountOptions is what a list of options means, which was checked before.
func mountOptions(o nfs.Options) nfs.MountOptions {
	m, _ := o.Mount()
	return m
}
