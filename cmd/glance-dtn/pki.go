package main

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/glance-dtn/glance-dtn/internal/pki"
)

func (c *cli) pki() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pki",
		Short: "Make the certificates by which agents and DTNs know each other",
		Long: `pki is a small certificate authority for the agents and DTNs of all sites. Keep its
directory on one safe machine; only ca.pem and a role's own two files leave it.`,
		Args: noSuchCommand,

		SuggestionsMinimumDistance: 2,

		RunE: noCommand,
	}
	cmd.AddCommand(c.pkiInit(), c.pkiIssue(), c.pkiShow())
	return cmd
}

func (c *cli) pkiInit() *cobra.Command {
	var name string
	life := lifetime(pki.CALife)
	cmd := &cobra.Command{
		Use:   "init DIR",
		Short: "Make a certificate authority: DIR/ca.pem and DIR/ca.key",
		Args:  args("DIR"),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := pki.InitCA(args[0], name, time.Duration(life)); err != nil {
				return err
			}
			x, err := readCertificate(filepath.Join(args[0], pki.CAFile), time.Now())
			if err != nil {
				return err
			}
			return c.print([]certificate{x}, func() error {
				_, err := fmt.Fprintf(c.out, "%s goes to every host; keep %s here and secret\n", x.File, filepath.Join(args[0], pki.CAKeyFile))
				return err
			})
		},
	}
	cmd.Flags().StringVar(&name, "name", "glance-dtn CA", "name of the authority")
	cmd.Flags().Var(&life, "life", "how long it is valid, as in 365d or 12h")
	return cmd
}

// lifetime is a flag: days, as in 365d, or a time.Duration.
type lifetime time.Duration

const day = 24 * time.Hour

func (l *lifetime) Type() string { return "duration" }

func (l *lifetime) String() string {
	if d := time.Duration(*l); d%day != 0 {
		return d.String()
	}
	return fmt.Sprintf("%dd", time.Duration(*l)/day)
}

func (l *lifetime) Set(s string) error {
	d, err := time.ParseDuration(s)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		var n uint64
		n, err = strconv.ParseUint(days, 10, 16)
		d = time.Duration(n) * day
	}
	if err != nil {
		return errors.New("it is a time such as 365d or 12h")
	}
	*l = lifetime(d)
	return nil
}

func (c *cli) pkiIssue() *cobra.Command {
	var id pki.Identity
	var hosts []string
	life := lifetime(pki.LeafLife)
	var out string
	cmd := &cobra.Command{
		Use:   "issue DIR --site SITE --role ROLE --host NAME",
		Short: "Make a certificate and its key with the authority in DIR",
		Long: `issue writes ROLE.pem and ROLE.key, by default to DIR/SITE. --host names every DNS
name and address under which others reach that host.`,
		Example: `  glance-dtn pki issue ca --site A --role agent --host ctrl-a.example.org
  glance-dtn pki issue ca --site A --role dtn --host dtn-a.example.org --host 192.0.2.7`,
		Args: args("DIR"),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := id.Validate(); err != nil {
				return usagef("%w", err)
			}
			if len(hosts) == 0 && id.Role != pki.Operator {
				return usagef("--host is missing: others reach the %s by a name or an address", id)
			}
			if out == "" {
				out = filepath.Join(args[0], id.Site)
			}
			file, err := pki.Issue(args[0], id, hosts, time.Duration(life), out)
			if err != nil {
				return err
			}
			return c.showCertificate(file)
		},
	}
	f := cmd.Flags()
	f.StringVar(&id.Site, "site", "", "site the certificate speaks for")
	f.StringVar(&id.Role, "role", "", "agent, dtn or operator")
	f.StringArrayVar(&hosts, "host", nil, "DNS name or address of the host (repeatable)")
	f.Var(&life, "life", "how long it is valid, as in 90d or 12h; never longer than the authority")
	f.StringVar(&out, "out", "", "directory to write to (default DIR/SITE)")
	required(cmd, "site")
	required(cmd, "role")
	complete(cmd, "role", cobra.FixedCompletions([]string{pki.Agent, pki.DTN, pki.Operator}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (c *cli) pkiShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show FILE...",
		Short: "Show whom certificates speak for, and until when",
		Args:  args("FILE..."),
		RunE: func(_ *cobra.Command, args []string) error {
			return c.showCertificate(args...)
		},
	}
}

// certificate is what an operator wants to know of one.
type certificate struct {
	File     string    `json:"file"`
	For      string    `json:"for"`
	Hosts    []string  `json:"hosts,omitempty"`
	NotAfter time.Time `json:"not_after"`
	Expired  bool      `json:"expired"`
}

func (c *cli) showCertificate(files ...string) error {
	var certs []certificate
	for _, f := range files {
		x, err := readCertificate(f, time.Now())
		if err != nil {
			return err
		}
		certs = append(certs, x)
	}
	return c.print(certs, func() error {
		for _, x := range certs {
			until := fmt.Sprintf("valid until %s (%s)", clock(x.NotAfter), span(time.Until(x.NotAfter)))
			if x.Expired {
				until = "EXPIRED " + clock(x.NotAfter)
			}
			fmt.Fprintf(c.out, "%s: %s, %s", x.File, x.For, until)
			if len(x.Hosts) > 0 {
				fmt.Fprintf(c.out, ", reached as %s", strings.Join(x.Hosts, ", "))
			}
			fmt.Fprintln(c.out)
		}
		return nil
	})
}

func readCertificate(file string, now time.Time) (certificate, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return certificate{}, err
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return certificate{}, fmt.Errorf("%s does not begin with a certificate in PEM", file)
	}
	x, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return certificate{}, fmt.Errorf("read certificate %s: %w", file, err)
	}
	c := certificate{File: file, For: "authority " + x.Subject.CommonName, Hosts: x.DNSNames, NotAfter: x.NotAfter.UTC(), Expired: now.After(x.NotAfter)}
	for _, ip := range x.IPAddresses {
		c.Hosts = append(c.Hosts, ip.String())
	}
	if !x.IsCA {
		id, err := pki.IdentityOf(x)
		if err != nil {
			return certificate{}, fmt.Errorf("certificate %s: %w", file, err)
		}
		c.For = id.String()
	}
	return c, nil
}
