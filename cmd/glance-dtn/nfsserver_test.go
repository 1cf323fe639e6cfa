package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/go-git/go-billy/v5"
	"github.com/go-git/go-billy/v5/osfs"
	"github.com/rogpeppe/go-internal/testscript"
	server "github.com/willscott/go-nfs"
	"github.com/willscott/go-nfs/helpers"
)

// nfsserver serves a directory over NFS 3 until the script ends, and sets NFS_OPTIONS
// to its ports: nfsserver DIR.
func nfsserver(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: nfsserver DIR")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ctx, stop := context.WithCancel(context.Background())
	s := &server.Server{Handler: helpers.NewCachingHandler(helpers.NewNullAuthHandler(changeable{osfs.New(ts.MkAbs(args[0]))}), 64), Context: ctx}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	ts.Defer(func() { ln.Close(); stop(); <-served })
	port := ln.Addr().(*net.TCPAddr).Port
	ts.Setenv("NFS_OPTIONS", fmt.Sprintf("port=%d,mountport=%d", port, port))
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
