// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"reflect"

	"github.com/urfave/cli/v2"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
)

func (p *program) trustCommand() *cli.Command {
	return &cli.Command{
		Name: "trust", Usage: "consent to talk with an agent, and ask for its consent", ArgsUsage: "TARGET", BashComplete: p.completeAgents,
		Flags:       append([]cli.Flag{reasonFlag()}, grantFlags()...),
		Subcommands: []*cli.Command{p.trustPending(), p.trustApprove(), p.trustReject(), p.trustRevoke(), p.trustLs()},
		Description: manual{
			about: `Two agents can talk when both consented. This gives your consent to TARGET, a name, address or agent key, and asks for
theirs: it shows up there in "pilot trust pending" with your reason. They answer by "pilot trust approve" or "reject".

--ports says what they may open here; it does not limit what you may open there: that is theirs to say. If an agent has
the name of one of the commands below, give its address.

` + trustStates,
			examples: []string{`pilot trust warehouse --reason "quarterly audit"`, "pilot trust warehouse --ports tcp:443,udp:53,8000-8999 --expires 7d"},
			exits:    trustExits(),
			result:   reflect.TypeFor[localapi.TrustEntry](),
		}.String(),
		Action: p.trustAction(localapi.ActionRequest),
	}
}

func (p *program) trustApprove() *cli.Command {
	return &cli.Command{
		Name: "approve", Usage: "give your consent to one who asked", ArgsUsage: "TARGET", BashComplete: p.completeAgents,
		Flags: append(grantFlags(),
			&cli.StringFlag{Name: "accept-key", Usage: "accept that TARGET now has this `KEY` (agent:…), after a KEY_MISMATCH; check it with a person there"}),
		Description: manual{
			about: `Answers a request of "pilot trust pending" with your consent: from now on you can talk.

A name is bound to the key under which it was first seen. If it shows up under another one, it is refused with
KEY_MISMATCH: perhaps the agent was set up anew, perhaps somebody is posing as it. Ask its people what "pilot status"
shows there as its key; if it is theirs, accept it by --accept-key.`,
			examples: []string{"pilot trust approve auditor", "pilot trust approve auditor --ports 443 --expires 30d", "pilot trust approve auditor --accept-key agent:…"},
			exits:    trustExits(),
			result:   reflect.TypeFor[localapi.TrustEntry](),
		}.String(),
		Action: p.trustAction(localapi.ActionApprove),
	}
}

func (p *program) trustReject() *cli.Command {
	return &cli.Command{
		Name: "reject", Usage: "say no to one who asked", ArgsUsage: "TARGET", BashComplete: p.completeAgents,
		Flags: []cli.Flag{reasonFlag()},
		Description: manual{
			about:    `Answers a request of "pilot trust pending" with no. You can still change your mind: pilot trust approve.`,
			examples: []string{`pilot trust reject auditor --reason "ask again in June"`},
			exits:    trustExits(),
			result:   reflect.TypeFor[localapi.TrustEntry](),
		}.String(),
		Action: p.trustAction(localapi.ActionReject),
	}
}

func (p *program) trustRevoke() *cli.Command {
	return &cli.Command{
		Name: "revoke", Usage: "take your consent back", ArgsUsage: "TARGET", BashComplete: p.completeAgents,
		Flags: []cli.Flag{reasonFlag()},
		Description: manual{
			about: `Takes your consent to TARGET back. What is open between you ends within two seconds, on this host at once and also if
the coordinator or the peer can't be reached.`,
			examples: []string{`pilot trust revoke auditor --reason "audit is over"`},
			exits:    trustExits(),
			result:   reflect.TypeFor[localapi.TrustEntry](),
		}.String(),
		Action: p.trustAction(localapi.ActionRevoke),
	}
}

func trustExits() []int {
	return []int{localapi.ExitNotRunning, localapi.ExitForbidden, localapi.ExitNotFound, localapi.ExitConflict, localapi.ExitUnreachable, localapi.ExitKeyMismatch}
}

func reasonFlag() cli.Flag {
	return &cli.StringFlag{Name: "reason", Usage: "`TEXT` that the other agent's people are shown"}
}

func grantFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "ports", Usage: "`LIST` of ports that they may open here, like tcp:443,udp:53,8000-8999 (default: all)"},
		&cli.StringFlag{Name: "expires", Usage: "`TIME` after which your consent ends (default: never)"},
	}
}

// trustAction is the action of the commands that change a consent.
func (p *program) trustAction(action string) cli.ActionFunc {
	return func(c *cli.Context) error {
		request, err := trustRequest(c, action)
		if err != nil {
			return err
		}
		client, err := p.client(c)
		if err != nil {
			return err
		}
		entry, err := ask(c.Context, askLimit, func(ctx context.Context) (localapi.TrustEntry, error) { return client.Trust(ctx, request) })
		if err != nil {
			return err
		}
		return p.show(c, entry, entryWriter(entry))
	}
}

func trustRequest(c *cli.Context, action string) (localapi.TrustRequest, error) {
	r := localapi.TrustRequest{Action: action, Target: c.Args().First(), Reason: c.String("reason")}
	if err := positional(c, 1, 1); err != nil {
		return r, err
	}
	var err error
	if r.Ports, err = parsePorts(c.String("ports")); err != nil {
		return r, err
	}
	if r.Expires, err = durationFlag(c, "expires"); err != nil {
		return r, err
	}
	if key := c.String("accept-key"); key != "" {
		if r.AcceptKey, err = identity.ParseAgentPublic(key); err != nil {
			return r, usage("--accept-key: %v", err)
		}
	}
	return r, nil
}
