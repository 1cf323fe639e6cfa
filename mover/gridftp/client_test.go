package gridftp

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

const (
	srcURL = "gsiftp://dtn-a:2811/export/outbox/image"
	dstURL = "gsiftp://dtn-b:2811/export/inbox/.image.part"
)

// said runs the transcript of a failed run through as it comes from a pipe, byte by byte.
func said(text string) *fault {
	t := &transcript{}
	for _, b := range []byte(text) {
		_, _ = t.Write([]byte{b})
	}
	t.end()
	return &fault{url: t.bad, words: t.words, exit: errors.New("exit status 1")}
}

// TestFaults holds what follows from what Debian's globus-url-copy 10.12 and
// globus-gridftp-server 13.24 say.
func TestFaults(t *testing.T) {
	server := func(url, words string) string {
		return "debug: fault on connection to " + url + ": globus_ftp_client: the server responded with an error\ndebug: operation complete\n\n" +
			"error: globus_ftp_client: the server responded with an error\n500 500-Command failed. : callback failed.\r\n500-globus_xio: System error in write: " + words +
			"\r\n500-globus_xio: A system call failed: " + words + "\r\n500 End.\r\n"
	}
	login := func(words string) string {
		return "debug: fault on connection to " + dstURL + "\n\nerror: globus_ftp_client: the server responded with an error\n530 530-" + words + "\r\n530-\r\n530 End.\r\n"
	}
	for name, c := range map[string]struct {
		text string
		code mover.Code
		says []string
	}{
		"source missing":        {server(srcURL, "No such file or directory"), mover.CodeSource, []string{srcURL, "not staged"}},
		"source not readable":   {server(srcURL, "Permission denied"), mover.CodeName, []string{srcURL, "transfer.stage: copy"}},
		"no inbox":              {server(dstURL, "No such file or directory"), mover.CodeName, []string{dstURL, "inbox is not there"}},
		"inbox not writable":    {server(dstURL, "Permission denied"), mover.CodeName, []string{dstURL, "may not write"}},
		"disk full":             {server(dstURL, "No space left on device"), mover.CodeSpace, []string{"System error in write: No space left on device"}},
		"quota":                 {server(dstURL, "Disk quota exceeded"), mover.CodeSpace, []string{"make room"}},
		"not in the gridmap":    {login("Login incorrect. : globus_gss_assist: Gridmap lookup failure: Could not map /O=test/CN=localhost A"), mover.CodeAuth, []string{"/O=test/CN=localhost A", "grid-mapfile"}},
		"unknown authority":     {login("globus_xio: Authentication Error\r\n530-GSS failure: \r\n530-globus_gsi_callback_module: Could not verify credential: self-signed certificate"), mover.CodeAuth, []string{"does not trust the CA"}},
		"Ed25519":               {login("globus_xio: Authentication Error\r\n530-GSS failure: \r\n530-OpenSSL Error: rsa_gen.c:90: in library: rsa routines, function (null): key size too small"), mover.CodeAuth, []string{"RSA"}},
		"server not trusted":    {"debug: fault on connection to " + dstURL + ": globus_ftp_control: gss_init_sec_context failed\nerror: globus_ftp_control: gss_init_sec_context failed\nGSS failure: \nglobus_gsi_callback_module: Could not verify credential\nglobus_gsi_callback_module: Can't get the local trusted CA certificate: Untrusted self-signed certificate in chain with hash 72c434d2\n", mover.CodeAuth, []string{"72c434d2", "gridftp.cert_dir"}},
		"nobody there":          {"debug: fault on connection to " + dstURL + ": globus_xio: Unable to connect to dtn-b:2811\nerror: globus_xio: Unable to connect to dtn-b:2811\nglobus_xio: System error in connect: Connection refused\n", mover.CodeOther, []string{"Connection refused", "globus-gridftp-server running"}},
		"no such host":          {"debug: fault on connection to " + dstURL + ": globus_xio: Unable to connect to dtn-b:2811\nerror: globus_xio: Unable to connect to dtn-b:2811\nglobus_xio: globus_libc_getaddrinfo failed.\n", mover.CodeOther, []string{"cannot be looked up"}},
		"data port shut":        {"debug: fault on connection to " + srcURL + ": globus_ftp_client: the server responded with an error\nerror: globus_ftp_client: the server responded with an error\n500 500-Command failed. : callback failed.\n500-globus_xio: Unable to connect to 192.0.2.7:50001\n500-globus_xio: System error in connect: Connection timed out\n500 End.\n", mover.CodeOther, []string{"192.0.2.7:50001", "port_range"}},
		"killed":                {"debug: fault on connection to " + dstURL + ": an end-of-file was reached\nerror: an end-of-file was reached\nglobus_xio: An end of file occurred\n", mover.CodeOther, []string{"closed the connection"}},
		"nothing that we know":  {"error: something else\nentirely\n", mover.CodeOther, []string{"something else: entirely"}},
		"not a word":            {"", mover.CodeOther, []string{"exit status 1"}},
		"more than anyone says": {"error: " + strings.Repeat("x", 1<<20) + "\n" + strings.Repeat("y\n", 1<<10), mover.CodeOther, []string{"x"}},
		"more of what we know":  {"error: Login incorrect" + strings.Repeat("x", 1<<20), mover.CodeAuth, []string{"does not let this DTN in"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := said(c.text).explain(srcURL, dstURL)
			if mover.CodeOf(err) != c.code {
				t.Errorf("%v has code %s, want %s", err, mover.CodeOf(err), c.code)
			}
			for _, w := range c.says {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%.300v\ndoes not say %q", err, w)
				}
			}
			if len(err.Error()) > 2<<10 {
				t.Errorf("%d bytes of error", len(err.Error()))
			}
		})
	}
	if err := said(server(srcURL, "No such file or directory")).missing(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a small file that is missing: %v", err)
	}
}

func TestMarkersCountFromTheStartWithoutAGap(t *testing.T) {
	m := markers{at: dstURL}
	for _, step := range []struct {
		line, from string
		whole      int64
		ok         bool
	}{
		{"111 Range Marker 100-200", dstURL, 0, false},
		{"111 Range Marker 0-100", srcURL, 0, false},
		{"111 Range Marker 0-50,60-90", dstURL, 50, true},
		{"112-Perf Marker", dstURL, 0, false},
		{"111 Range Marker 50-60,90-100,300-400", dstURL, 200, true},
		{"111 Range Marker 20-30", dstURL, 200, true},
		{"111 Range Marker 99999999999999999999-1", dstURL, 0, false},
		{"111 Range Marker 200-300", dstURL, 400, true},
	} {
		if whole, ok := m.take(step.line, step.from); whole != step.whole || ok != step.ok {
			t.Errorf("%s: got %d, %v, want %d, %v", step.line, whole, ok, step.whole, step.ok)
		}
	}
}

func FuzzTranscript(f *testing.F) {
	f.Add("debug: response from "+dstURL+":\n111 Range Marker 0-5,7-9\nerror: x\n", 3)
	f.Fuzz(func(t *testing.T, text string, cut int) {
		m := markers{at: dstURL}
		tr := &transcript{hear: func(line, from string) {
			if whole, ok := m.take(line, from); ok && whole < 0 {
				t.Errorf("%q: %d bytes", line, whole)
			}
		}}
		if cut < 0 || cut > len(text) {
			cut = 0
		}
		_, _ = tr.Write([]byte(text[:cut]))
		_, _ = tr.Write([]byte(text[cut:]))
		tr.end()
		_ = (&fault{url: tr.bad, words: tr.words, exit: errors.New("exit")}).explain(srcURL, dstURL).Error()
	})
}

// TestTheChildGetsWhatItNeedsAndNoMore holds that arguments are passed as they are, that
// nothing of our environment reaches the child, and what protects the data.
func TestTheChildGetsWhatItNeedsAndNoMore(t *testing.T) {
	t.Setenv("OS_PASSWORD", "hunter2")
	program := filepath.Join(t.TempDir(), "globus-url-copy")
	script := "#!/bin/sh\nenv >&2; printf '<%s>' \"$@\" >&2; exit 0\n"
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	for protection, want := range map[Protection]string{Private: "<-dcpriv>", Safe: "<-dcsafe>", Clear: "", "": "<-dcpriv>"} {
		c := Client{Program: program, Cert: "/c.pem", Key: "/k.pem", CertDir: "/certs", Protection: protection}
		var lines []string
		move := transfer{from: srcURL, to: dstURL, span: span{5, 10}, parallelism: 3, buffer: 64, stall: time.Minute}
		_, err := c.run(t.Context(), nil, func(line, _ string) { lines = append(lines, line) }, c.args(move)...)
		if err != nil {
			t.Fatal(err)
		}
		last := lines[len(lines)-1]
		if want := "<-dbg>" + want + "<-fast><-p><3><-st><60><-off><5><-len><10><-tcp-bs><64><" + srcURL + "><" + dstURL + ">"; last != want {
			t.Errorf("arguments %s, want %s", last, want)
		}
		for _, want := range []string{"X509_USER_CERT=/c.pem", "X509_USER_KEY=/k.pem", "X509_CERT_DIR=/certs", "LC_ALL=C"} {
			if !slices.Contains(lines, want) {
				t.Errorf("the environment %q has no %s", lines, want)
			}
		}
		if strings.Contains(strings.Join(lines, "\n"), "hunter2") {
			t.Error("the child knows our environment")
		}
	}
	if _, err := (&Client{Program: program + "2"}).run(t.Context(), nil, nil); err == nil || !strings.Contains(err.Error(), program+"2") {
		t.Errorf("a program that is not there: %v", err)
	}
}

func TestTheChildEndsWithItsContext(t *testing.T) {
	program := filepath.Join(t.TempDir(), "globus-url-copy")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho 'debug: here' >&2\necho ready >&2\nexec sleep 600\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	why := errors.New("an operator said so")
	c := Client{Program: program}
	if _, err := c.run(ctx, nil, func(string, string) { cancel(why) }); !errors.Is(err, why) {
		t.Errorf("got %v, want the context's cause", err)
	}
}

func TestSpansOfWhatIsMissing(t *testing.T) {
	const block = mover.BlockSize
	for name, c := range map[string]struct {
		size  int64
		there string // a digit a block: 1 is there
		want  []span
	}{
		"empty":     {0, "", nil},
		"nothing":   {2*block + 5, "", []span{{0, 2*block + 5}}},
		"all":       {2*block + 5, "111", nil},
		"the tail":  {2*block + 5, "110", []span{{2 * block, 5}}},
		"two holes": {4 * block, "0101", []span{{0, block}, {2 * block, block}}},
		"many holes": {20 * block, "01010101010101010101", []span{
			{0, block}, {2 * block, block}, {4 * block, block}, {6 * block, block}, {8 * block, block}, {10 * block, block}, {12 * block, block}, {14 * block, 5 * block},
		}},
	} {
		got := join(c.size, func(off int64) bool { i := off / block; return i < int64(len(c.there)) && c.there[i] == '1' })
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}

func TestOnlyPlainNamesAreMoved(t *testing.T) {
	for _, base := range []string{"a*", "a?", "[a]", "a b", "a%20b", "a\nb", "ä", strings.Repeat("x", 201)} {
		if err := checkName(mover.Inbox, "inbox/"+base); mover.CodeOf(err) != mover.CodeName {
			t.Errorf("%q: got %v, want code %s", base, err, mover.CodeName)
		}
	}
	if err := checkName(mover.Outbox, "outbox/0f3c-send.1"); err != nil {
		t.Error(err)
	}
}
