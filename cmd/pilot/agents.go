// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"reflect"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilot-protocol/pilot/node/localapi"
)

func (p *program) agentsCommand() *cli.Command {
	return &cli.Command{
		Name: "agents", Usage: "list the agents that you may see, or those of this daemon",
		Flags:       []cli.Flag{&cli.BoolFlag{Name: "local", Usage: "list the agents of this daemon besides its own"}},
		Subcommands: []*cli.Command{p.agentsAdd(), p.agentsRemove()},
		Description: manual{
			about: `Lists this agent and those with whom there is a consent in either direction. Nobody is shown the whole network.

` + trustStates + `

` + aboutLocal + ` With --local those are listed, with the user ids of
their owners; the JSON is then {"agents": [...]} of what "pilot agents add" prints.`,
			examples: []string{"pilot agents", "pilot agents --local", "pilot agents --json | jq -r '.agents[].fqdn'"},
			exits:    []int{localapi.ExitNotRunning, localapi.ExitForbidden, localapi.ExitUnreachable},
			result:   reflect.TypeFor[localapi.AgentList](),
		}.String(),
		Action: p.agents,
	}
}

const trustStates = `states of trust:
  self        this agent
  none        no consent either way
  requested   you consented, they have not yet
  pending     they consented and wait for your decision: pilot trust pending
  mutual      both consented: you can talk
  rejected    you or they said no
  revoked     one of the two consents was taken back or has ended`

func (p *program) agents(c *cli.Context) error {
	if err := positional(c, 0, 0); err != nil {
		return err
	}
	client, err := p.client(c)
	if err != nil {
		return err
	}
	if c.Bool("local") {
		return p.listLocals(c, client)
	}
	list, err := ask(c.Context, askLimit, client.Agents)
	if err != nil {
		return err
	}
	return p.show(c, list, func(w io.Writer) {
		if len(list.Agents) == 0 {
			fmt.Fprintln(w, "none yet: invite one (pilot invite) or ask for trust (pilot trust NAME)")
			return
		}
		rows := [][]string{{"NAME", "ADDRESS", "TRUST", "ONLINE", "TAGS"}}
		for _, a := range list.Agents {
			rows = append(rows, []string{a.Name, a.Address.String(), a.Trust, online(a, time.Now()), strings.Join(a.Tags, ",")})
		}
		table(w, rows...)
	})
}

func online(a localapi.Agent, now time.Time) string {
	switch {
	case a.Online:
		return "yes"
	case a.LastSeen.IsZero():
		return "no"
	}
	return "no, seen " + ago(a.LastSeen, now)
}
