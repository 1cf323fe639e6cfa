// Command glance-dtn keeps OpenStack images the same at several sites: it is the
// agent beside Glance, the daemon on the data transfer node, and the command line
// that asks both for work.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	return newCLI(os.Stdout, os.Stderr).execute(ctx, args)
}
