// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"reflect"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilot-protocol/pilot/node/localapi"
)

func (p *program) inviteCommand() *cli.Command {
	return &cli.Command{
		Name: "invite", Usage: "make an invite for more hosts",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "uses", Value: 1, Usage: "how many agents may join by it, `N` (default 1)"},
			&cli.StringFlag{Name: "expires", Value: "24h", Usage: "`TIME` until it is void (default 24h)"},
			&cli.StringSliceFlag{Name: "tag", Usage: "a `TAG` that those who join get; may be repeated. The tag admin allows to invite and to revoke"},
			&cli.StringFlag{Name: "jurisdiction", Usage: "the jurisdiction that those who join get, such as `eu-de`"},
			&cli.BoolFlag{Name: "no-trust", Usage: "leave your consent out: who joins then has to ask for it"},
		},
		Description: manual{
			about: `Makes an invite and prints the command for the other host. Who has an invite may join the network, and talk to you unless
--no-trust was given: it is a secret while it lasts. Only an agent with the tag admin may invite.`,
			examples: []string{"pilot invite", "pilot invite --uses 50 --expires 7d --tag worker --no-trust", "pilot invite --json | jq -r .invite"},
			exits:    []int{localapi.ExitNotRunning, localapi.ExitForbidden, localapi.ExitUnreachable},
			result:   reflect.TypeFor[localapi.InviteResult](),
		}.String(),
		Action: p.invite,
	}
}

func (p *program) invite(c *cli.Context) error {
	if err := positional(c, 0, 0); err != nil {
		return err
	}
	expires, err := durationFlag(c, "expires")
	if err != nil {
		return err
	}
	if c.Int("uses") < 1 {
		return usage("--uses: %d is below one", c.Int("uses"))
	}
	client, err := p.client(c)
	if err != nil {
		return err
	}
	r, err := ask(c.Context, askLimit, func(ctx context.Context) (localapi.InviteResult, error) {
		return client.Invite(ctx, localapi.InviteRequest{
			Uses: c.Int("uses"), Expires: expires, Tags: c.StringSlice("tag"), Jurisdiction: c.String("jurisdiction"), NoTrust: c.Bool("no-trust"),
		})
	})
	if err != nil {
		return err
	}
	return p.show(c, r, func(w io.Writer) {
		line(w, "invite", "pilot up %s   (%s)", r.Invite, inviteNote(r, time.Now()))
	})
}

// inviteNote says what an invite is good for.
func inviteNote(r localapi.InviteResult, now time.Time) string {
	uses := "one use"
	if r.Uses != 1 {
		uses = fmt.Sprintf("%d uses", r.Uses)
	}
	parts := []string{uses, period(r.Expires.Sub(now).Round(time.Minute))}
	if len(r.Tags) > 0 {
		parts = append(parts, "tags: "+strings.Join(r.Tags, " "))
	}
	if !r.Trust {
		parts = append(parts, "no trust")
	}
	return strings.Join(parts, ", ")
}
