// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/urfave/cli/v2"

	"github.com/pilot-protocol/pilot/node/localapi"
)

func (p *program) dnsSettingsCommand() *cli.Command {
	return &cli.Command{
		Name: "dns-settings", Usage: "change this host's DNS settings for the daemon; for service managers", Hidden: true,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "backup", Value: "/var/lib/pilot-dns", Usage: "the `DIR` in which changes are remembered until they are undone"},
		},
		Description: manual{
			about: `What the unit pilot-dns@.service runs as root, since the daemon isn't. The daemon is at the other end of the socket
that standard input is, and asks for its zone to be resolved by its own DNS; nothing else can be asked for. When the connection
ends, the settings are put back, and the command ends.`,
			examples: []string{"systemctl status pilot-dns.socket"},
			exits:    []int{localapi.ExitState},
		}.String(),
		Action: func(c *cli.Context) error {
			if err := positional(c, 0, 0); err != nil {
				return err
			}
			log, err := newLog(p.stderr, "info", "json")
			if err != nil {
				return err
			}
			return p.sys.ServeDNS(c.Context, c.String("backup"), log)
		},
	}
}
