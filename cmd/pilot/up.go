// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
)

// upLimit is how long a network may take to become usable.
const upLimit = 2 * time.Minute

// maxInviteFile bounds what is read of a file with an invite, in bytes.
const maxInviteFile = 16 << 10

func (p *program) upCommand() *cli.Command {
	return &cli.Command{
		Name: "up", Usage: "join a network, make one, or go on with the one that this host has", ArgsUsage: "[INVITE|-]",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "name", Usage: "the agent's `NAME` in the network: a-z, 0-9, hyphens (default: the host's name)"},
			&cli.StringFlag{Name: "network", Usage: "the `NAME` of a network to make (default: pilot)"},
			&cli.StringFlag{Name: "invite-file", Usage: "read the invite from `FILE`"},
			&cli.StringFlag{Name: "coordinator-listen", Usage: "`HOST:PORT` of the coordinator of a network to make (default: port 7745 of all addresses)"},
			&cli.StringSliceFlag{Name: "avoid-jurisdiction", Usage: "use no relay under the jurisdiction `LABEL`; more by more flags; kept until it is given again, \"\" avoids none"},
			&cli.StringFlag{Name: "tun", Usage: "how packets get to programs: the `MODE` auto, kernel or userspace; kept"},
			&cli.StringFlag{Name: "socks5", Usage: "where this host's programs find a SOCKS5 proxy: a loopback `HOST:PORT`, or off; kept (in userspace: any port)"},
			&cli.StringFlag{Name: "http-proxy", Usage: "the same for an HTTP proxy: `HOST:PORT` or off"},
			&cli.BoolFlag{Name: "proxy-direct", Usage: "let the internet, too, be reached through the proxies; kept, --proxy-direct=false ends it"},
			&cli.BoolFlag{Name: "no-relay", Usage: "the coordinator on this host shall be no relay"},
			&cli.StringFlag{Name: "relay-name", Usage: "the `NAME` of the relay on this host (default: one made of its key)"},
			&cli.StringFlag{Name: "relay-region", Usage: "the `REGION` of that relay, such as eu"},
			&cli.StringFlag{Name: "relay-jurisdiction", Usage: "the jurisdiction of that relay, such as `eu-de`"},
			&cli.BoolFlag{Name: "foreground", Usage: "run the daemon in this process, until SIGINT or SIGTERM"},
		},
		Description: manual{
			about: `Brings this host onto a network and returns when the network is usable; the daemon goes on in the background (the
system service where one is installed). With an invite it joins that network and trusts the inviter. Without one it
goes on with the network that it has, or makes a new one, whose coordinator then runs on this host, and prints an
invite for the next host. It is no error if it is up already.

An invite is a secret. As an argument it can be seen by other users of this host in the list of processes: where that
matters give it by --invite-file, or by "-" on standard input. It reaches the daemon through its socket only.

The coordinator on this host is a relay too: for agents that can't reach each other directly it passes on what they
send, sealed. What --no-relay and the flags of the relay say is kept, and counts from the coordinator's next start on.

The virtual interface, by which every program of this host reaches agents, needs root. Without root, or where there is no
/dev/net/tun, up chooses userspace by itself and says so: the daemon then handles packets itself, nothing of the host
changes, and programs reach agents through the daemon's SOCKS5 and HTTP proxies: see "pilot help env". With --tun=kernel
there is an interface or an error, with --tun=userspace none; the choice is kept.

An ordinary user's daemon keeps its state in $XDG_STATE_HOME/pilot (~/.local/state/pilot). With --state DIR the daemon is one
of its own, beside the host's.`,
			examples: []string{
				"sudo pilot up --name planner                      make a network, or go on",
				"sudo pilot up --name warehouse pilot://…          join one",
				"sudo pilot up --invite-file /run/secrets/invite   join one, the invite seen by nobody",
				"pilot up --tun=userspace --name indexer           no root, no interface",
				"ssh planner pilot invite --json | jq -r .invite | sudo pilot up -",
			},
			exits: []int{localapi.ExitNotRunning, localapi.ExitForbidden, localapi.ExitConflict, localapi.ExitUnreachable,
				localapi.ExitKeyMismatch, localapi.ExitState},
			result: reflect.TypeFor[localapi.UpResult](),
		}.String(),
		Action: p.up,
	}
}

func (p *program) up(c *cli.Context) error {
	if err := positional(c, 0, 1); err != nil {
		return err
	}
	invite, err := p.readInvite(c.Args().First(), c.String("invite-file"))
	if err != nil {
		return err
	}
	if name := c.String("name"); name != "" {
		if err := identity.ValidateName(name); err != nil {
			return &localapi.Error{Code: localapi.CodeNameInvalid, Message: err.Error(), Hint: "use a-z, 0-9 and hyphens, at most 63 characters"}
		}
	}
	if name := c.String("network"); name != "" {
		if err := identity.ValidateNetworkName(name); err != nil {
			return &localapi.Error{Code: localapi.CodeNameInvalid, Message: "--network: " + err.Error(), Hint: "use a-z, 0-9 and hyphens, at most 63 characters"}
		}
	}
	if listen := c.String("coordinator-listen"); listen != "" {
		if err := checkListen("--coordinator-listen", listen); err != nil {
			return err
		}
	}
	avoid := c.StringSlice("avoid-jurisdiction")
	for _, label := range avoid {
		if err := identity.ValidateJurisdiction(label); err != nil {
			return usage("--avoid-jurisdiction: %v", err)
		}
	}
	request := localapi.UpRequest{
		Name: c.String("name"), Network: c.String("network"), Invite: invite, CoordinatorListen: c.String("coordinator-listen"),
		AvoidJurisdictions: avoid, TUN: c.String("tun"),
	}
	if err := checkTUN(request.TUN); err != nil {
		return err
	}
	if request.Relay, err = hostedRelay(c); err != nil {
		return err
	}
	request.SOCKS5, request.HTTPProxy = c.String("socks5"), c.String("http-proxy")
	if c.IsSet("proxy-direct") {
		direct := c.Bool("proxy-direct")
		request.ProxyDirect = &direct
	}
	if invite != "" && (request.Network != "" || request.CoordinatorListen != "") {
		e := usage("an invite names the network and its coordinator already")
		e.Hint = "leave --network and --coordinator-listen out, or the invite"
		return e
	}
	if c.Bool("foreground") {
		return p.upHere(c, request)
	}
	return p.upDaemon(c, request)
}

func checkTUN(mode string) error {
	switch mode {
	case "", localapi.TUNAuto, localapi.TUNKernel, localapi.TUNUserspace:
		return nil
	}
	e := usage("--tun: %q is no mode", mode)
	e.Hint = "modes are auto, kernel and userspace"
	return e
}

// hostedRelay reads what the call says about the relay on this host; nil where it says nothing.
func hostedRelay(c *cli.Context) (*localapi.HostedRelay, error) {
	if !c.IsSet("no-relay") && !c.IsSet("relay-name") && !c.IsSet("relay-region") && !c.IsSet("relay-jurisdiction") {
		return nil, nil
	}
	o, err := relayFlags(c)
	return &localapi.HostedRelay{Off: o.Off, Name: o.Name, Region: o.Region, Jurisdiction: o.Jurisdiction}, err
}

// upDaemon asks the daemon, which is started where none runs.
func (p *program) upDaemon(c *cli.Context, request localapi.UpRequest) error {
	client, err := p.client(c)
	if err != nil {
		return err
	}
	started, err := p.ensureDaemon(c, client)
	if err != nil {
		return err
	}
	result, err := ask(c.Context, upLimit, func(ctx context.Context) (localapi.UpResult, error) { return client.Up(ctx, request) })
	if err != nil {
		if started {
			p.endIdle(c.Context, client)
		}
		if codeOf(err) == localapi.CodeNotRunning { // it did answer before
			return &localapi.Error{Code: localapi.CodeInternal, Message: "the daemon broke off before the network was up: " + err.Error(),
				Hint: "its log may say why: " + p.logPlace(c)}
		}
		return err
	}
	return p.showUp(c, result)
}

// endIdle ends a daemon that was started for a call that failed, unless it has a network to care for.
func (p *program) endIdle(ctx context.Context, client *localapi.Client) {
	ctx = context.WithoutCancel(ctx) // also after an interruption
	status, err := ask(ctx, pollLimit, client.Status)
	if err != nil || status.State != localapi.StateDown {
		return
	}
	if _, err := ask(ctx, pollLimit, client.Down); err != nil {
		fmt.Fprintf(p.stderr, "pilot: warning: the daemon goes on without a network: %s\n", safe(err.Error()))
	}
}

func (p *program) showUp(c *cli.Context, r localapi.UpResult) error {
	for _, w := range r.Warnings {
		fmt.Fprintf(p.stderr, "pilot: warning: %s\n", safe(w))
	}
	return p.show(c, r, func(w io.Writer) {
		line(w, "network", "%s  (%s)", r.Network, upSource(r))
		line(w, "agent", "%s  %s", r.FQDN, r.Address)
		if r.TUN == localapi.TUNUserspace {
			line(w, "mode", "%s", tunText(r.TUN, r.TUNWhy))
		}
		if text := proxyText(r.SOCKS5, r.HTTPProxy, false); text != "" {
			line(w, "proxies", `%s; for programs: eval "$(pilot env)"`, text)
		}
		if r.Inviter != "" {
			line(w, "inviter", "%s", r.Inviter)
		}
		if r.Invite != "" {
			line(w, "invite", "pilot up %s   (one use, 24 h; more: pilot invite)", r.Invite)
		}
	})
}

// tunText describes how packets get to programs: "userspace (why)".
func tunText(mode, why string) string {
	if why == "" {
		return mode
	}
	return mode + " (" + why + ")"
}

// proxyText describes the proxies: "SOCKS5 127.0.0.1:1080, HTTP 127.0.0.1:3128".
func proxyText(socks5, http string, direct bool) string {
	var parts []string
	if socks5 != "" {
		parts = append(parts, "SOCKS5 "+socks5)
	}
	if http != "" {
		parts = append(parts, "HTTP "+http)
	}
	if direct {
		parts = append(parts, "to the internet too")
	}
	return strings.Join(parts, ", ")
}

// upSource says where the network comes from.
func upSource(r localapi.UpResult) string {
	var parts []string
	if r.Created {
		parts = append(parts, "new")
	}
	if r.Joined {
		parts = append(parts, "joined")
	}
	at := strings.Join(r.Coordinators, ", ")
	switch {
	case r.Hosted:
		at = strings.TrimSuffix("this host is its coordinator, "+at, ", ")
	case at != "":
		at = "coordinator " + at
	default:
		at = "no coordinator known"
	}
	return strings.Join(append(parts, at), "; ")
}

// readInvite returns the invite of the call, from wherever it comes; empty where there is none.
func (p *program) readInvite(text, file string) (string, error) {
	switch {
	case text != "" && file != "":
		return "", usage("the invite is given twice: as an argument and by --invite-file")
	case text == "-":
		raw, err := io.ReadAll(io.LimitReader(p.stdin, maxInviteFile))
		if err != nil {
			return "", usage("standard input can't be read: %v", err)
		}
		text = string(raw)
	case file != "":
		return readInviteFile(file)
	case text == "":
		return "", nil
	}
	return findInvite(text)
}

// readInviteFile takes the invite out of a file.
func readInviteFile(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", usage("the invite can't be read: %v", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxInviteFile))
	if err != nil {
		return "", usage("the invite can't be read: %v", err)
	}
	return findInvite(string(raw))
}

// findInvite takes the invite out of a text, in which "pilot up" may stand before it as it is printed.
func findInvite(text string) (string, error) {
	for word := range strings.FieldsSeq(text) {
		if !strings.HasPrefix(word, inviteScheme) {
			continue
		}
		if _, err := identity.ParseInvite(word); err != nil {
			return "", &localapi.Error{Code: localapi.CodeInviteInvalid, Message: "the invite can't be used: " + err.Error(),
				Hint: "copy all of it, from pilot:// to its last character, or ask for a new one"}
		}
		return word, nil
	}
	return "", &localapi.Error{Code: localapi.CodeInviteInvalid, Message: "there is no invite in what was given: an invite begins with " + inviteScheme,
		Hint: "an admin of the network makes one by: pilot invite"}
}
