// Package nfstest serves NFS version 3 from this process, for tests that need a server
// and not the kernel's: no root, no portmapper. It answers every WRITE with FILE_SYNC and
// never syncs, so nothing about its speed or safety means anything.
package nfstest

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/go-git/go-billy/v5"
	"github.com/go-git/go-billy/v5/osfs"
	"github.com/willscott/go-nfs"
	"github.com/willscott/go-nfs/helpers"
)

// Serve exports a directory as / on a port of 127.0.0.1, which has NFS and MOUNT, until
// stop is called.
func Serve(dir string) (port int, stop func(), err error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &nfs.Server{Handler: helpers.NewCachingHandler(helpers.NewNullAuthHandler(changeable{osfs.New(dir)}), 64), Context: ctx}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	stop = func() {
		_ = ln.Close()
		cancel()
		<-served
	}
	return ln.Addr().(*net.TCPAddr).Port, stop, nil
}

// changeable lets go-nfs set attributes on an osfs.
type changeable struct{ billy.Filesystem }

func (c changeable) path(name string) string { return filepath.Join(c.Root(), name) }

func (c changeable) Chmod(name string, mode os.FileMode) error {
	return os.Chmod(c.path(name), mode)
}

func (c changeable) Lchown(name string, uid, gid int) error {
	return os.Lchown(c.path(name), uid, gid)
}

func (c changeable) Chown(name string, uid, gid int) error {
	return os.Chown(c.path(name), uid, gid)
}

func (c changeable) Chtimes(name string, atime, mtime time.Time) error {
	return os.Chtimes(c.path(name), atime, mtime)
}
