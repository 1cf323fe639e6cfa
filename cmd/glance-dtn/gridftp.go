package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/glance-dtn/glance-dtn/agent/config"
	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/gridftp"
	"github.com/glance-dtn/glance-dtn/mover/ticket"
)

func gridClient(conf config.GridFTP) gridftp.Client {
	return gridftp.Client{
		Cert: conf.Cert, Key: conf.Key, Proxy: conf.Proxy, CertDir: conf.CertDir,
		Protection: gridftp.Protection(conf.Protection),
	}
}

// gridEngine sends the export's files through the site's GridFTP server.
func gridEngine(conf config.DTN, export *os.Root, ring *pki.Keyring) *gridftp.Engine {
	var tickets ticket.Verifier
	return &gridftp.Engine{
		Client: gridClient(conf.GridFTP), Site: conf.Site, Export: export, URL: conf.GridFTP.URL, Buffer: int64(conf.GridFTP.Buffer),
		Ticket: func(token string) (mover.Ticket, error) { return tickets.VerifyAny(ring.Roots(), token, time.Now()) },
	}
}

// checkGrid says at the start what keeps the site's own GridFTP server from being used,
// which would otherwise be found with the first file.
func checkGrid(conf config.GridFTP, log *slog.Logger) part {
	return func(ctx context.Context) error {
		client := gridClient(conf)
		if err := client.Check(ctx, conf.URL); err != nil && ctx.Err() == nil {
			log.Warn("this site's GridFTP server cannot be used; transfers will fail until it can", "url", conf.URL, "err", err)
		}
		<-ctx.Done()
		return nil
	}
}

func (c *cli) probe() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "probe URL",
		Short: "Check that a GridFTP server can be used from here",
		Long: `probe connects to the GridFTP server of an export, logs in with the certificate of
dtn.yaml, and lists the inbox, which needs a data connection too. It writes nothing.
URL is gridftp.url of the other site's dtn.yaml; run it on the DTN.`,
		Example: "  glance-dtn probe gsiftp://dtn-b.example.org:2811/export/glance",
		Args:    args("URL"),
		RunE: func(cmd *cobra.Command, a []string) error {
			if err := mover.CheckAddress(a[0]); err != nil || mover.EngineFor(a[0]) != mover.GridFTP {
				return usagef("%q is not the URL of an export, such as gsiftp://dtn-b.example.org:2811/export/glance", a[0])
			}
			conf, err := config.LoadDTN(file, os.Getenv)
			if err != nil {
				return badConfig(err)
			}
			client := gridClient(conf.GridFTP)
			if err := client.Check(cmd.Context(), a[0]); err != nil {
				return err
			}
			usable := struct {
				URL    string `json:"url"`
				Usable bool   `json:"usable"`
			}{a[0], true}
			return c.print(usable, func() error {
				_, err := fmt.Fprintf(c.out, "%s: the server answers, lets this DTN in, and shows the inbox\n", a[0])
				return err
			})
		},
	}
	configFlag(cmd, &file, defaultDTNConfig)
	return cmd
}
