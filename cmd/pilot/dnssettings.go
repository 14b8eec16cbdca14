// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/pilot-protocol/pilot/node/localapi"
)

func (p *program) dnsSettingsCommand() *cli.Command {
	return &cli.Command{
		Name: "dns-settings", Usage: "change this host's DNS settings for the daemon; for service managers", Hidden: true,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "backup", Value: "/var/lib/pilot-dns", Usage: "the `DIR` in which changes are remembered until they are undone"},
			&cli.BoolFlag{Name: "guard", Usage: "undo what a daemon has set when standard input ends, unless it said something"},
		},
		Description: manual{
			about: `What the unit pilot-dns@.service runs as root, since the daemon isn't. The daemon is at the other end of the socket
that standard input is, and asks for its zone to be resolved by its own DNS; nothing else can be asked for. When the connection
ends, the settings are put back, and the command ends.

With --guard it is what a daemon that runs as root starts beside itself: when that is killed, it undoes what is left of it.`,
			examples: []string{"systemctl status pilot-dns.socket"},
			exits:    []int{localapi.ExitState},
		}.String(),
		Action: func(c *cli.Context) error {
			if err := positional(c, 0, 0); err != nil {
				return err
			}
			if c.Bool("guard") {
				return p.guardDNS(c)
			}
			log, err := newLog(p.stderr, "info", "json")
			if err != nil {
				return err
			}
			return p.sys.ServeDNS(c.Context, c.String("backup"), log)
		},
	}
}

// guardDNS waits for a daemon's end. Signals that are meant for the daemon, and reach the guard too, don't end it.
func (p *program) guardDNS(c *cli.Context) error {
	dir, err := p.stateDir(c)
	if err != nil {
		return err
	}
	said, err := io.ReadAll(io.LimitReader(p.stdin, 1))
	if err != nil || len(said) > 0 {
		return err
	}
	if err := p.cleanUp(context.WithoutCancel(c.Context), dir); err != nil {
		return fmt.Errorf("undo what the daemon left behind: %w", err)
	}
	return nil
}
