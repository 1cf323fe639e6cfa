package movers

import (
	"context"
	"crypto/tls"
	"encoding/gob"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/glance-dtn/glance-dtn/internal/pki"
)

// bareEnv has this test binary be one end of [bare]: serve, with the arguments DIRECTORY
// IDENTITY, or fetch, with ADDRESS CONNECTIONS SIZE NAME SECURE.
const bareEnv = "MOVERS_BARE"

func TestMain(m *testing.M) {
	flag.Parse()
	var err error
	switch args := flag.Args(); os.Getenv(bareEnv) {
	case "serve":
		err = serveBare(args[0], args[1])
	case "fetch":
		var connections int
		var size int64
		var secure bool
		_, err = fmt.Sscan(args[1]+" "+args[2]+" "+args[4], &connections, &size, &secure)
		if err == nil {
			err = fetchBare(args[0], connections, size, args[3], secure)
		}
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// extent is a part of a file, as it is asked for.
type extent struct {
	Name      string
	Off, Size int64
}

// bare is the least that moves one file: an extent for each connection, read and written
// with a buffer of 256 KiB. The sender has sendfile(2) or, if it is to be secure, crypto/tls.
func bare(connections int, secure bool) func(*rig) (func(context.Context) error, error) {
	return func(r *rig) (func(context.Context) error, error) {
		identity := ""
		if secure {
			ca, leaf := filepath.Join(r.dir, "bare-ca"), filepath.Join(r.dir, "bare")
			if _, err := os.Stat(ca); err != nil {
				if err := pki.InitCA(ca, "movers", pki.CALife); err != nil {
					return nil, err
				}
			}
			if _, err := pki.Issue(ca, pki.Identity{Site: "A", Role: pki.DTN}, []string{r.send.Addr.String()}, pki.LeafLife, leaf); err != nil {
				return nil, err
			}
			identity = filepath.Join(leaf, "dtn")
		}
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		if err := r.serve(r.send, []string{bareEnv + "=serve"}, 7445, self, outDir, identity); err != nil {
			return nil, err
		}
		return func(ctx context.Context) error {
			return r.run(ctx, r.recv, []string{bareEnv + "=fetch"}, self,
				net.JoinHostPort(r.send.Addr.String(), "7445"), strconv.Itoa(connections), strconv.FormatInt(r.size, 10), filepath.Join(inDir, r.files[0].Name), strconv.FormatBool(secure))
		}, nil
	}
}

// serveBare serves the files of dir, with the certificate and key of that name if there is one.
func serveBare(dir, identity string) error {
	l, err := net.Listen("tcp", ":7445")
	if err != nil {
		return err
	}
	if identity != "" {
		cert, err := tls.LoadX509KeyPair(identity+".pem", identity+".key")
		if err != nil {
			return err
		}
		l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			var e extent
			if gob.NewDecoder(c).Decode(&e) != nil { // a probe, which only connects
				return
			}
			f, err := os.Open(filepath.Join(dir, e.Name))
			if err != nil {
				return
			}
			defer f.Close()
			if _, err := f.Seek(e.Off, io.SeekStart); err != nil {
				return
			}
			// The reader of an extent that is short says so.
			_, _ = io.CopyBuffer(c, io.LimitReader(f, e.Size), make([]byte, 256<<10))
		}()
	}
}

// fetchBare fetches one file.
func fetchBare(address string, connections int, size int64, name string, secure bool) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	var all errgroup.Group
	part := (size + int64(connections) - 1) / int64(connections)
	for off := int64(0); off < size; off += part {
		all.Go(func() error {
			c, err := net.Dial("tcp", address)
			if err != nil {
				return err
			}
			if secure { // whoever serves is on the same computer: nothing is to be proven to a benchmark
				c = tls.Client(c, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
			}
			defer c.Close()
			e := extent{filepath.Base(name), off, min(part, size-off)}
			if err := gob.NewEncoder(c).Encode(e); err != nil {
				return err
			}
			n, err := io.CopyBuffer(io.NewOffsetWriter(f, e.Off), io.LimitReader(c, e.Size), make([]byte, 256<<10))
			if err == nil && n < e.Size {
				err = fmt.Errorf("%d bytes of %d: %w", n, e.Size, io.ErrUnexpectedEOF)
			}
			return err
		})
	}
	return errors.Join(all.Wait(), f.Close())
}
