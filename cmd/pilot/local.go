// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"reflect"

	"github.com/urfave/cli/v2"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
)

const aboutLocal = `A daemon has one agent of its own, and any number besides: each with a key, a name, an address and a trust of its own, and
with its own counters. They share the daemon's UDP port. They have no interface: programs reach others in their name
through proxies or "pilot nc", and are reached through "pilot serve", all with --agent NAME.`

func (p *program) agentsAdd() *cli.Command {
	return &cli.Command{
		Name: "add", Usage: "add an agent to the daemon", ArgsUsage: "NAME [INVITE|-]",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "invite-file", Usage: "read the invite from `FILE`"},
			&cli.BoolFlag{Name: "no-trust", Usage: "without an invite: let the new agent and the daemon's own not trust each other"},
			&cli.StringFlag{Name: "socks5", Usage: "where its SOCKS5 proxy listens: a loopback `HOST:PORT`, port 0 for any"},
			&cli.StringFlag{Name: "http-proxy", Usage: "the same for an HTTP proxy: `HOST:PORT`"},
		},
		Description: manual{
			about: aboutLocal + `

Without an invite the daemon's own agent makes one, if it may invite; it is used at once. The agent belongs to you:
besides root and the daemon's own user, nobody else acts as it.`,
			examples: []string{"pilot agents add researcher", "pilot agents add researcher --socks5 127.0.0.1:0 && eval \"$(pilot env --agent researcher)\"",
				"pilot trust warehouse --agent researcher"},
			exits:  []int{localapi.ExitNotRunning, localapi.ExitForbidden, localapi.ExitConflict, localapi.ExitUnreachable},
			result: reflect.TypeFor[localapi.LocalAgent](),
		}.String(),
		Action: p.addLocal,
	}
}

func (p *program) agentsRemove() *cli.Command {
	return &cli.Command{
		Name: "rm", Usage: "remove an agent from the daemon, for good", ArgsUsage: "NAME",
		Description: manual{
			about: `Ends an agent that was added by "pilot agents add", and deletes its key: nobody is this agent any more, and its sessions
end. Where the daemon's own agent may, its membership is revoked too; else that ends with its certificate, within a day.`,
			examples: []string{"pilot agents rm researcher"},
			exits:    []int{localapi.ExitNotRunning, localapi.ExitForbidden, localapi.ExitConflict},
			result:   reflect.TypeFor[localapi.LocalAgent](),
		}.String(),
		Action: p.removeLocal,
	}
}

func (p *program) addLocal(c *cli.Context) error {
	if err := positional(c, 1, 2); err != nil {
		return err
	}
	name := c.Args().First()
	if err := identity.ValidateName(name); err != nil {
		return &localapi.Error{Code: localapi.CodeNameInvalid, Message: err.Error(), Hint: "use a-z, 0-9 and hyphens, at most 63 characters"}
	}
	invite, err := p.readInvite(c.Args().Get(1), c.String("invite-file"))
	if err != nil {
		return err
	}
	client, err := p.client(c)
	if err != nil {
		return err
	}
	request := localapi.LocalRequest{
		Name: name, Invite: invite, NoTrust: c.Bool("no-trust"), SOCKS5: c.String("socks5"), HTTPProxy: c.String("http-proxy"),
	}
	a, err := ask(c.Context, upLimit, func(ctx context.Context) (localapi.LocalAgent, error) { return client.AddLocal(ctx, request) })
	if err != nil {
		return err
	}
	return p.show(c, a, func(w io.Writer) { writeLocals(w, a) })
}

func (p *program) removeLocal(c *cli.Context) error {
	if err := positional(c, 1, 1); err != nil {
		return err
	}
	client, err := p.client(c)
	if err != nil {
		return err
	}
	a, err := ask(c.Context, askLimit, func(ctx context.Context) (localapi.LocalAgent, error) {
		return client.RemoveLocal(ctx, c.Args().First())
	})
	if err != nil {
		return err
	}
	return p.show(c, a, func(w io.Writer) { fmt.Fprintf(w, "%s is removed, and its key is deleted\n", safe(a.Name)) })
}

func (p *program) listLocals(c *cli.Context, client *localapi.Client) error {
	list, err := ask(c.Context, askLimit, client.Locals)
	if err != nil {
		return err
	}
	return p.show(c, list, func(w io.Writer) {
		if len(list.Agents) == 0 {
			fmt.Fprintln(w, "none besides the daemon's own; add one: pilot agents add NAME")
			return
		}
		writeLocals(w, list.Agents...)
	})
}

func writeLocals(w io.Writer, agents ...localapi.LocalAgent) {
	rows := [][]string{{"NAME", "ADDRESS", "STATE", "OWNER", "PEERS", "SESSIONS", "RECEIVED", "SENT"}}
	for _, a := range agents {
		address := ""
		if a.Address.IsValid() {
			address = a.Address.String()
		}
		rows = append(rows, []string{
			a.Name, address, a.State, fmt.Sprint(a.Owner), fmt.Sprint(a.Peers), fmt.Sprint(a.Sessions), fmt.Sprint(a.RxBytes), fmt.Sprint(a.TxBytes),
		})
	}
	table(w, rows...)
	for _, a := range agents {
		if a.Error != nil {
			fmt.Fprintf(w, "%s: %s (%s)\n", safe(a.Name), safe(a.Error.Message), safe(a.Error.Code))
		}
	}
}
