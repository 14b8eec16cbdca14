// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"reflect"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilot-protocol/pilot/node/localapi"
)

func (p *program) whoisCommand() *cli.Command {
	return &cli.Command{
		Name: "whois", Usage: "say who has an address or a name", ArgsUsage: "ADDRESS|NAME", BashComplete: p.completeAgents,
		Description: manual{
			about: `Looks an agent up by address, name or agent key. What it prints is certified by the network's authority and not just
claimed by the coordinator.

` + trustStates,
			examples: []string{"pilot whois warehouse", "pilot whois fd5c:1d2:93a0:…"},
			exits:    []int{localapi.ExitNotRunning, localapi.ExitForbidden, localapi.ExitNotFound, localapi.ExitUnreachable, localapi.ExitKeyMismatch},
			result:   reflect.TypeFor[localapi.Agent](),
		}.String(),
		Action: p.whois,
	}
}

func (p *program) whois(c *cli.Context) error {
	if err := positional(c, 1, 1); err != nil {
		return err
	}
	client, err := p.client(c)
	if err != nil {
		return err
	}
	a, err := ask(c.Context, askLimit, func(ctx context.Context) (localapi.Agent, error) { return client.WhoIs(ctx, c.Args().First()) })
	if err != nil {
		return err
	}
	return p.show(c, a, func(w io.Writer) {
		line(w, "agent", "%s  %s", a.FQDN, a.Address)
		line(w, "key", "%s", a.Key)
		line(w, "trust", "%s", a.Trust)
		if a.Trust != localapi.TrustSelf {
			line(w, "online", "%s", online(a, time.Now()))
		}
		if len(a.Tags) > 0 {
			line(w, "tags", "%s", strings.Join(a.Tags, ", "))
		}
		if a.Jurisdiction != "" {
			line(w, "law of", "%s", a.Jurisdiction)
		}
	})
}
