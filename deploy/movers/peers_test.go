package movers

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/client"
	"github.com/glance-dtn/glance-dtn/mover/ticket"
)

// ours is the mover that the others are compared with. It proves as much of what arrived
// as they do: nothing.
const ours = "glance-dtn, clear"

// peer is a mover with its settings.
type peer struct {
	name     string
	load     string // the only load that it is for; empty: all
	wide     bool   // it is for the wide area alone
	discards bool   // it keeps nothing of what arrives
	arrivals string // where below inDir files arrive
	// start starts the servers, and returns what moves all files from outDir of the
	// sender to inDir of the receiver.
	start func(*rig) (move func(context.Context) error, err error)
}

// peers are the movers, each with the settings that were best for it: several
// connections for one file, several files at once where it can.
func peers() []peer {
	return []peer{
		{name: ours, arrivals: "inbox", start: glanceDTN(mover.Clear, false, mover.PCP{})},
		{name: "glance-dtn, safe", arrivals: "inbox", start: glanceDTN(mover.Safe, false, mover.PCP{})},
		{name: "glance-dtn, private", arrivals: "inbox", start: glanceDTN(mover.Private, false, mover.PCP{})},
		{name: "glance-dtn, private, SHA-512", arrivals: "inbox", start: glanceDTN(mover.Private, true, mover.PCP{})},
		{name: "glance-dtn, safe, 16 connections", load: "one", arrivals: "inbox", start: glanceDTN(mover.Safe, false, mover.PCP{Parallelism: 16})},
		{name: "crypto/tls, 2 connections", load: "one", start: bare(2, true)},
		{name: "sendfile, 1 connection", load: "one", start: bare(1, false)},
		{name: "sendfile, 4 connections", load: "one", start: bare(4, false)},
		{name: "iperf3 -P 1, no files", load: "one", discards: true, start: iperf(1)},
		{name: "iperf3 -P 4, no files", load: "one", discards: true, start: iperf(4)},
		{name: "globus-url-copy -p 4 -fast", load: "one", start: globus("-p", "4", "-fast")},
		{name: "globus-url-copy -p 16 -fast", load: "one", wide: true, start: globus("-p", "16", "-fast")},
		{name: "globus-url-copy -pp -fast", start: globus("-pp", "-fast")},
		{name: "globus-url-copy -cc 4 -pp -fast", start: globus("-cc", "4", "-pp", "-fast")},
		{name: "xrdcp", start: xrdcp()},
		{name: "xrdcp -S 8", load: "one", wide: true, start: xrdcp("--streams", "8")},
		{name: "xrdcp --parallel 4", start: xrdcp("--parallel", "4")},
		{name: "curl", start: fromNginx(curl)},
		{name: "rclone", start: fromNginx(rclone)},
		{name: "aria2c", start: fromNginx(aria2)},
		{name: "lftp", start: fromNginx(lftp)},
		{name: "rsync", start: rsync},
		{name: "rsync over ssh", start: rsyncSSH},
	}
}

// glanceDTN has two DTNs, and asks the sending one for each file, as an agent does: with
// the digest of the whole file to be proven, or without.
func glanceDTN(protection mover.Protection, whole bool, pcp mover.PCP) func(*rig) (func(context.Context) error, error) {
	return func(r *rig) (func(context.Context) error, error) {
		start, rings, err := r.install(protection)
		if err == nil {
			err = errors.Join(start(r.recv), start(r.send))
		}
		if err != nil {
			return nil, err
		}
		return r.thirdParty(rings["A"], rings["B"], whole, pcp, "")
	}
}

// install makes the DTNs of sites A, which sends, and B, without any state. It returns what
// starts one of them, and the certificates of the sites' agents. A relay is site R's.
func (r *rig) install(protection mover.Protection) (start func(*host) error, agents map[string]*pki.Keyring, err error) {
	binary, err := filepath.Abs(os.Getenv("GLANCE_DTN"))
	if err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp(r.dir, "glance-dtn-")
	if err != nil {
		return nil, nil, err
	}
	ca := filepath.Join(dir, "ca")
	if err := pki.InitCA(ca, "movers", pki.CALife); err != nil {
		return nil, nil, err
	}
	agents = map[string]*pki.Keyring{}
	configs := map[*host]string{}
	sites := map[string]*host{"A": r.send, "B": r.recv}
	if r.relay != nil {
		sites["R"] = r.relay
	}
	for site, h := range sites {
		at := filepath.Join(dir, site)
		for _, role := range []string{pki.DTN, pki.Agent} {
			if _, err := pki.Issue(ca, pki.Identity{Site: site, Role: role}, []string{h.Addr.String()}, pki.LeafLife, at); err != nil {
				return nil, nil, err
			}
		}
		files := pki.Files{CA: filepath.Join(ca, "ca.pem"), Cert: filepath.Join(at, "agent.pem"), Key: filepath.Join(at, "agent.key")}
		if agents[site], err = files.Load(func(error) {}); err != nil {
			return nil, nil, err
		}
		export, more := "/run/export", ""
		switch site {
		case "B":
			export = inDir
		case "R":
			more = "relay: {space: 64GiB, routes: [{from: A, to: [B]}]}\n"
		}
		h.Run(r.tb, "rm", "-rf", "/run/state", "/run/export")
		h.Run(r.tb, "mkdir", "-p", "/run/state", export)
		configs[h] = write(r.tb, filepath.Join(at, "dtn.yaml"), fmt.Sprintf(`
site: %s
log: {level: warn}
export: %s
address: %s:7444
state: /run/state
tls: {ca: ../ca/ca.pem}
metrics: ""
reserve: 1MiB
transfers: 8
protection: %s
%s%s`, site, export, h.Addr, protection, more, r.settings))
	}
	return func(h *host) error {
		return r.serve(h, nil, 7443, binary, "dtn", "--config", configs[h])
	}, agents, nil
}

// thirdParty stages the files, by links, and returns what has them moved: through the
// relay in a mode, or straight without one.
func (r *rig) thirdParty(asker, signer *pki.Keyring, whole bool, pcp mover.PCP, mode mover.RelayMode) (func(context.Context) error, error) {
	destination := mover.Destination{Address: net.JoinHostPort(r.recv.Addr.String(), "7444")}
	right := mover.Ticket{Site: "B", From: "A", Expires: time.Now().Add(time.Hour)}
	if mode != "" {
		destination.Via = mover.Relay{Site: "R", Address: net.JoinHostPort(r.relay.Addr.String(), "7444"), Mode: mode}
		right.Via, right.Address = "R", destination.Address
	}
	var requests []mover.Request
	var tickets []mover.Ticket
	for _, f := range r.files {
		if !whole {
			f.Digest = digest.Digest{}
		}
		arriving := f
		arriving.Name = mover.Inbox + "/" + f.Name
		right.ID, right.File = f.Name, arriving
		tickets = append(tickets, right)
		staged := f
		staged.Name = mover.Outbox + "/" + f.Name
		if err := os.Link(filepath.Join(r.send.Path(outDir), f.Name), filepath.Join(r.send.Path("/run/export"), staged.Name)); err != nil {
			return nil, err
		}
		requests = append(requests, mover.Request{Key: f.Name, Source: staged, PCP: pcp, Destination: destination})
	}
	tokens, err := ticket.SignAll(signer.Certificate(), tickets)
	if err != nil {
		return nil, err
	}
	for i, token := range tokens {
		requests[i].Destination.Ticket = token
	}
	dtn, hangUp, err := r.api("A", r.send, asker)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		defer hangUp()
		return moved(ctx, dtn, requests)
	}, nil
}

// api is the API of a site's DTN on its host, as the site's agent there is served. hangUp
// closes the connections that rest.
func (r *rig) api(site string, h *host, agent *pki.Keyring) (dtn *client.Client, hangUp func(), err error) {
	conf := agent.ClientTLS(pki.Identity{Site: site, Role: pki.DTN})
	conf.ServerName = h.Addr.String()
	transport := &http.Transport{DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		raw, err := h.dial(network, address)
		if err != nil {
			return nil, err
		}
		c := tls.Client(raw, conf)
		return c, c.HandshakeContext(ctx)
	}, MaxIdleConnsPerHost: 16}
	dtn, err = client.New("https://"+net.JoinHostPort(h.Addr.String(), "7443"), &http.Client{Transport: transport})
	return dtn, transport.CloseIdleConnections, err
}

// moved asks for transfers and returns when they are done.
func moved(ctx context.Context, dtn *client.Client, requests []mover.Request) error {
	submitted, err := dtn.SubmitAll(ctx, requests)
	if err != nil {
		return err
	}
	left := map[mover.TransferID]bool{}
	for _, s := range submitted {
		if s.Err != nil {
			return s.Err
		}
		left[s.ID] = true
	}
	for s, err := range dtn.Follow(ctx) {
		switch {
		case err != nil:
			return err
		case s.State == mover.Done:
			delete(left, s.ID)
		case s.State.Final():
			return fmt.Errorf("%s: %s", s.State, s.Error)
		}
		if len(left) == 0 {
			return nil
		}
	}
	// Room for a file is taken before its first byte: only the DTN knows how far it is.
	asked, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	all, err := dtn.Transfers(asked, "")
	if err != nil {
		return err
	}
	out := &stopped{why: context.Cause(ctx)}
	for _, s := range all {
		out.moved += s.Moved
	}
	return out
}

// stopped is the end of a run that took too long.
type stopped struct {
	moved int64 // bytes until then
	why   error
}

func (s *stopped) Error() string { return fmt.Sprintf("after %d bytes: %v", s.moved, s.why) }
func (s *stopped) Unwrap() error { return s.why }

// iperf sends as many bytes as the files have, from memory to nowhere.
func iperf(streams int) func(*rig) (func(context.Context) error, error) {
	return func(r *rig) (func(context.Context) error, error) {
		if err := r.serve(r.recv, nil, 5201, "iperf3", "--server"); err != nil {
			return nil, err
		}
		return func(ctx context.Context) error {
			return r.run(ctx, r.send, nil, "iperf3", "--client", r.recv.Addr.String(), "--parallel", strconv.Itoa(streams), "--bytes", strconv.FormatInt(r.size, 10))
		}, nil
	}
}

// globus is a third-party copy between two GridFTP servers, without authentication.
func globus(args ...string) func(*rig) (func(context.Context) error, error) {
	return func(r *rig) (func(context.Context) error, error) {
		for _, h := range []*host{r.send, r.recv} {
			if err := r.serve(h, nil, 2811, "globus-gridftp-server", "-allow-anonymous", "-anonymous-user", "root", "-allow-root",
				"-port", "2811", "-control-interface", h.Addr.String(), "-data-interface", h.Addr.String(), "-blocksize", "1048576"); err != nil {
				return nil, err
			}
		}
		url := func(h *host, dir string) string { return fmt.Sprintf("ftp://%s:2811%s/", h.Addr, dir) }
		return func(ctx context.Context) error {
			return r.run(ctx, r.send, nil, "globus-url-copy", append(args, "-tcp-bs", "0", "-r", url(r.send, outDir), url(r.recv, inDir))...)
		}, nil
	}
}

// xrdcp fetches from an XRootD server, without checksums of pages, which are not
// looked at by others either.
func xrdcp(args ...string) func(*rig) (func(context.Context) error, error) {
	return func(r *rig) (func(context.Context) error, error) {
		config := write(r.tb, filepath.Join(r.dir, "xrootd.cfg"), "xrd.port 1094\nall.export "+outDir+"\nall.adminpath /run/xrootd\nall.pidpath /run/xrootd\n")
		var list strings.Builder
		for _, f := range r.files {
			fmt.Fprintf(&list, "root://%s:1094/%s/%s\n", r.send.Addr, outDir, f.Name)
		}
		files := write(r.tb, filepath.Join(r.dir, "xrdcp.list"), list.String())
		r.send.Run(r.tb, "install", "-d", "-o", "nobody", "/run/xrootd")
		if err := r.serve(r.send, nil, 1094, "xrootd", "-R", "nobody", "-c", config); err != nil {
			return nil, err
		}
		return func(ctx context.Context) error {
			return r.run(ctx, r.recv, []string{"XRD_CPUSEPGWRTRD=0"}, "xrdcp", append(args, "--nopbar", "--force", "--infiles", files, inDir+"/")...)
		}, nil
	}
}

// fromNginx is a client of a web server that sends with sendfile(2).
func fromNginx(do func(ctx context.Context, r *rig, url string) error) func(*rig) (func(context.Context) error, error) {
	return func(r *rig) (func(context.Context) error, error) {
		if err := r.nginx(r.send, outDir); err != nil {
			return nil, err
		}
		return func(ctx context.Context) error { return do(ctx, r, "http://"+r.send.Addr.String()+"/") }, nil
	}
}

// nginx serves a directory.
func (r *rig) nginx(h *host, dir string) error {
	config := write(r.tb, filepath.Join(r.dir, h.Name+"-nginx.conf"), `
user root;
daemon off;
worker_processes 2;
pid /run/nginx.pid;
error_log stderr;
events {}
http {
	access_log off;
	sendfile on;
	tcp_nopush on;
	keepalive_requests 100000;
	client_body_temp_path /run/nginx; proxy_temp_path /run/nginx; fastcgi_temp_path /run/nginx;
	scgi_temp_path /run/nginx; uwsgi_temp_path /run/nginx;
	server { listen 80; root `+dir+`; autoindex on; }
}
`)
	return r.serve(h, nil, 80, "nginx", "-c", config, "-e", "stderr")
}

func curl(ctx context.Context, r *rig, url string) error {
	var list strings.Builder
	for _, f := range r.files {
		fmt.Fprintf(&list, "url = %s%s\noutput = %s/%s\n", url, f.Name, inDir, f.Name)
	}
	config := write(r.tb, filepath.Join(r.dir, "curl.conf"), list.String())
	return r.run(ctx, r.recv, nil, "curl", "--fail", "--silent", "--show-error", "--parallel", "--parallel-max", "8", "--config", config)
}

func rclone(ctx context.Context, r *rig, url string) error {
	return r.run(ctx, r.recv, nil, "rclone", "copy", ":http:", inDir, "--http-url", url, "--config", "/dev/null",
		"--transfers", "8", "--checkers", "16", "--multi-thread-streams", "4", "--multi-thread-cutoff", "64M", "--buffer-size", "4M")
}

func aria2(ctx context.Context, r *rig, url string) error {
	var list strings.Builder
	for _, f := range r.files {
		list.WriteString(url + f.Name + "\n")
	}
	files := write(r.tb, filepath.Join(r.dir, "aria2.list"), list.String())
	return r.run(ctx, r.recv, nil, "aria2c", "--no-conf", "--quiet", "--dir", inDir, "--input-file", files, "--file-allocation", "none",
		"--max-connection-per-server", "16", "--split", "16", "--min-split-size", "8M", "--max-concurrent-downloads", "16")
}

func lftp(ctx context.Context, r *rig, url string) error {
	return r.run(ctx, r.recv, nil, "lftp", "-c", "set net:max-retries 1; mirror --parallel=8 --use-pget-n=4 "+url+" "+inDir)
}

func rsync(r *rig) (func(context.Context) error, error) {
	config := write(r.tb, filepath.Join(r.dir, "rsyncd.conf"), "uid = root\nuse chroot = no\n[out]\npath = "+outDir+"\n")
	if err := r.serve(r.send, nil, 873, "rsync", "--daemon", "--no-detach", "--config", config); err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		return r.run(ctx, r.recv, nil, "rsync", "--recursive", "--whole-file", "--inplace", "rsync://"+r.send.Addr.String()+"/out/", inDir+"/")
	}, nil
}

func rsyncSSH(r *rig) (func(context.Context) error, error) {
	for _, name := range []string{"host", "user"} {
		key := filepath.Join(r.dir, "ssh-"+name)
		if _, err := os.Stat(key); err == nil {
			continue
		}
		r.send.Run(r.tb, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
	}
	key := filepath.Join(r.dir, "ssh-user")
	config := write(r.tb, filepath.Join(r.dir, "sshd_config"), fmt.Sprintf(
		"HostKey %s/ssh-host\nAuthorizedKeysFile %s.pub\nPermitRootLogin yes\nStrictModes no\nUsePAM no\nPidFile none\n", r.dir, key))
	r.send.Run(r.tb, "mkdir", "-p", "/run/sshd")
	if err := r.serve(r.send, nil, 22, "/usr/sbin/sshd", "-D", "-e", "-f", config); err != nil {
		return nil, err
	}
	ssh := "ssh -i " + key + " -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
	return func(ctx context.Context) error {
		return r.run(ctx, r.recv, nil, "rsync", "--recursive", "--whole-file", "--inplace", "-e", ssh, "root@"+r.send.Addr.String()+":"+outDir+"/", inDir+"/")
	}, nil
}
