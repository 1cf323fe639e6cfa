package gridftp

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Protection of data connections, in GridFTP's terms.
type Protection string

// The protections; all but Clear need gsiftp.
const (
	Clear   Protection = "clear"   // each end proves who it is, then the data is as it is
	Safe    Protection = "safe"    // and cannot be changed on its way
	Private Protection = "private" // and cannot be read on its way
)

// Client runs globus-url-copy. With gsiftp it needs a certificate and its key, or a proxy.
type Client struct {
	Program    string // globus-url-copy's path; empty: it is looked for in PATH
	Cert, Key  string // PEM files
	Proxy      string // a file with a proxy certificate, instead of Cert and Key
	CertDir    string // trusted certificates under their hashes; empty: where Globus looks
	Protection Protection
}

// limits of what is read of the child's output.
const (
	maxLine   = 4 << 10
	maxError  = 40       // lines of its last words
	maxAnswer = 64 << 20 // of a small file: of an answer with the digests of 1 TiB
	small     = time.Minute
	grace     = 5 * time.Second // to say goodbye to the servers
)

// transfer is a range of one file from server to server.
type transfer struct {
	from, to    string
	span        span
	parallelism int
	buffer      int64
	stall       time.Duration
}

// args are the transfer's arguments. MODE E, the only one with parallel streams and
// restart markers, is what -fast asks for. With -off the file is not truncated first.
func (c *Client) args(t transfer) []string {
	a := []string{
		"-fast", "-p", strconv.Itoa(t.parallelism), "-st", strconv.Itoa(int(t.stall.Seconds())),
		"-off", strconv.FormatInt(t.span.offset, 10), "-len", strconv.FormatInt(t.span.length, 10),
	}
	if t.buffer > 0 {
		a = append(a, "-tcp-bs", strconv.FormatInt(t.buffer, 10))
	}
	return append(a, t.from, t.to)
}

// copy has the span moved. marked is told how much of it, from its start without a gap,
// the receiving server says to have.
func (c *Client) copy(ctx context.Context, t transfer, marked func(whole int64)) error {
	m := markers{at: t.to}
	return c.explained(t.from, t.to)(c.run(ctx, nil, func(line, from string) {
		if whole, ok := m.take(line, from); ok {
			marked(whole)
		}
	}, c.args(t)...))
}

// get returns a small file; fs.ErrNotExist.
func (c *Client) get(ctx context.Context, from string) ([]byte, error) {
	ctx, stop := context.WithTimeoutCause(ctx, small, fmt.Errorf("%s is not answered for %v", from, small))
	defer stop()
	data, err := c.run(ctx, nil, nil, from, "-")
	if f, ok := errors.AsType[*fault](err); ok {
		return nil, f.missing()
	}
	return data, err
}

// put writes a small file. Whoever reads it meanwhile may see a part.
func (c *Client) put(ctx context.Context, data []byte, to string) error {
	ctx, stop := context.WithTimeoutCause(ctx, small, fmt.Errorf("%s is not answered for %v", to, small))
	defer stop()
	return c.explained("", to)(c.run(ctx, data, nil, "-", to))
}

// explained gives the fault of a run between two files its code.
func (c *Client) explained(source, target string) func(_ []byte, err error) error {
	return func(_ []byte, err error) error {
		if f, ok := errors.AsType[*fault](err); ok {
			return f.explain(source, target)
		}
		return err
	}
}

// run runs the program to its end. hear gets each line that a server says, and the URL
// that it is about. No shell is involved, the environment holds nothing of ours, and
// the child ends with us: it is asked to when ctx is done, and killed when we die.
func (c *Client) run(ctx context.Context, stdin []byte, hear func(line, from string), args ...string) ([]byte, error) {
	program := c.Program
	if program == "" {
		var err error
		if program, err = exec.LookPath("globus-url-copy"); err != nil {
			return nil, fmt.Errorf("%w; install it (Debian: globus-gass-copy-progs)", err)
		}
	}
	runtime.LockOSThread() // Pdeathsig means the thread
	defer runtime.UnlockOSThread()
	said := &transcript{hear: hear}
	out := &bounded{limit: maxAnswer}
	cmd := exec.CommandContext(ctx, program, slices.Concat([]string{"-dbg"}, c.protection(args), args)...)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = c.env(), bytes.NewReader(stdin), out, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = grace
	err := cmd.Run()
	said.end()
	switch _, failed := errors.AsType[*exec.ExitError](err); {
	case err == nil:
		return out.data, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case failed:
		return nil, &fault{url: said.bad, words: said.words, exit: err}
	}
	return nil, fmt.Errorf("run %s: %w", program, err)
}

func (c *Client) protection(args []string) []string {
	if !slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "gsiftp://") }) {
		return nil
	}
	switch c.Protection {
	case Clear:
		return nil
	case Safe:
		return []string{"-dcsafe"}
	}
	return []string{"-dcpriv"}
}

func (c *Client) env() []string {
	env := []string{"PATH=/usr/local/bin:/usr/bin:/bin", "LC_ALL=C"}
	for _, v := range [][2]string{
		{"X509_USER_CERT", c.Cert}, {"X509_USER_KEY", c.Key}, {"X509_USER_PROXY", c.Proxy}, {"X509_CERT_DIR", c.CertDir},
	} {
		if v[1] != "" {
			env = append(env, v[0]+"="+v[1])
		}
	}
	return env
}

// bounded keeps the first bytes of what is written to it.
type bounded struct {
	data  []byte
	limit int
}

func (b *bounded) Write(p []byte) (int, error) {
	b.data = append(b.data, p[:min(len(p), b.limit-len(b.data))]...)
	return len(p), nil
}

// transcript reads what globus-url-copy says on standard error, line by line.
type transcript struct {
	hear  func(line, from string)
	line  []byte
	about string   // the URL that the last server spoke of
	bad   string   // the URL whose connection failed
	words []string // from "error:" on
}

func (t *transcript) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		part, after, ended := bytes.Cut(rest, []byte{'\n'})
		t.line = append(t.line, part[:min(len(part), maxLine-len(t.line))]...)
		if rest = after; ended {
			t.take(strings.TrimSpace(string(t.line)))
			t.line = t.line[:0]
		}
	}
	return len(p), nil
}

func (t *transcript) end() { t.take(strings.TrimSpace(string(t.line))) }

var (
	spoken = regexp.MustCompile(`^debug: response from (\S+):$`)
	faulty = regexp.MustCompile(`^debug: fault on connection to (\S+)`)
)

func (t *transcript) take(line string) {
	switch m := []string(nil); {
	case line == "":
	case len(t.words) > 0 || strings.HasPrefix(line, "error: "):
		if len(t.words) < maxError {
			t.words = append(t.words, strings.TrimPrefix(line, "error: "))
		}
	case match(spoken, line, &m):
		t.about = m[1]
	case match(faulty, line, &m):
		t.bad = cmp.Or(t.bad, strings.TrimSuffix(m[1], ":"))
	case t.hear != nil && !strings.HasPrefix(line, "debug: "):
		t.hear(line, t.about)
	}
}

func match(r *regexp.Regexp, line string, m *[]string) bool {
	*m = r.FindStringSubmatch(line)
	return *m != nil
}

// markers follow the restart markers of the server at a URL. They are about the span that
// moves, not about the file.
type markers struct {
	at     string
	ranges [][2]int64 // from, to; in order, apart from each other
}

var marker = regexp.MustCompile(`^111[- ]Range Marker ((?:\d+-\d+,?)+)`)

// take returns how much is there from the start without a gap, if line says anything of it.
func (m *markers) take(line, from string) (whole int64, ok bool) {
	said := marker.FindStringSubmatch(line)
	if said == nil || from != m.at {
		return 0, false
	}
	for r := range strings.SplitSeq(strings.TrimSuffix(said[1], ","), ",") {
		first, last, _ := strings.Cut(r, "-")
		a, err1 := strconv.ParseInt(first, 10, 64)
		b, err2 := strconv.ParseInt(last, 10, 64)
		if err1 != nil || err2 != nil || b < a {
			return 0, false
		}
		m.add(a, b)
	}
	if len(m.ranges) == 0 || m.ranges[0][0] > 0 {
		return 0, false
	}
	return m.ranges[0][1], true
}

func (m *markers) add(a, b int64) {
	m.ranges = append(m.ranges, [2]int64{a, b})
	slices.SortFunc(m.ranges, func(x, y [2]int64) int { return cmp.Compare(x[0], y[0]) })
	joined := m.ranges[:1]
	for _, r := range m.ranges[1:] {
		if last := &joined[len(joined)-1]; r[0] <= last[1] {
			last[1] = max(last[1], r[1])
		} else {
			joined = append(joined, r)
		}
	}
	m.ranges = joined
}
