package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

func (c *cli) man() *cobra.Command {
	return &cobra.Command{
		Use:   "man DIR",
		Short: "Write the manual pages to a directory",
		Args:  args("DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			return manualPages(cmd.Root(), args[0])
		},
	}
}

// noDefault leaves out the defaults that say nothing.
var noDefault = strings.NewReplacer("[=false]", "", "=[]", "", `=""`, "", "=0s", "")

// afterOptions is what every page tells besides the command's own help.
const afterOptions = `.SH EXIT STATUS
.IP 0 5
done
.IP 1
failed
.IP 2
the command line or the configuration is wrong
.IP 3
partly done: some images are where they should be, others are not
.IP 4
a person is needed: jobs are parked, each says why
.IP 130
interrupted


.SH FILES
.TP
\fI/etc/glance-dtn/agent.yaml\fP, \fI/etc/glance-dtn/dtn.yaml\fP
the daemons' configuration, as their units name it
.TP
\fI/run/glance-dtn/agent.sock\fP
the agent's control socket, which the other commands ask
.TP
\fI/var/lib/glance-dtn\fP
what the daemons, and \fBglance-dtn tune\fP, have to know after a restart


`

// manualPages writes the pages of a command and of those below it.
func manualPages(cmd *cobra.Command, dir string) error {
	for _, sub := range cmd.Commands() {
		if !sub.IsAvailableCommand() || sub.IsAdditionalHelpTopicCommand() {
			continue
		}
		if err := manualPages(sub, dir); err != nil {
			return err
		}
	}
	var page bytes.Buffer
	header := &doc.GenManHeader{Section: "1", Source: "glance-dtn " + versionText(), Manual: "glance-dtn"}
	if err := doc.GenMan(cmd, header, &page); err != nil {
		return err
	}
	text := noDefault.Replace(page.String())
	at := max(0, strings.Index(text, ".SH SEE ALSO")) // every page refers to another one
	text = text[:at] + afterOptions + text[at:]
	name := strings.ReplaceAll(cmd.CommandPath(), " ", "-") + ".1"
	return os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)
}
