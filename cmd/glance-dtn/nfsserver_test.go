package main

import (
	"fmt"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/glance-dtn/glance-dtn/nfs/nfstest"
)

// nfsserver serves a directory over NFS 3 until the script ends, and sets NFS_OPTIONS
// to its ports: nfsserver DIR.
func nfsserver(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: nfsserver DIR")
	}
	port, stop, err := nfstest.Serve(ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Defer(stop)
	ts.Setenv("NFS_OPTIONS", fmt.Sprintf("port=%d,mountport=%d", port, port))
}
