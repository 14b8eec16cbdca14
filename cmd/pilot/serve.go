// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/pilot-protocol/pilot/node/localapi"
)

func (p *program) serveCommand() *cli.Command {
	exits := []int{localapi.ExitNotRunning, localapi.ExitForbidden, localapi.ExitNotFound, localapi.ExitConflict}
	return &cli.Command{
		Name: "serve", Usage: "publish a port of this host under the agent's address", ArgsUsage: "[tcp:|udp:|http:]PORT[=TARGET]",
		Subcommands: []*cli.Command{{
			Name: "ls", Usage: "list what is published",
			Description: manual{
				about:    "Lists published ports, with the connections that they have and had, and why nobody reaches the program behind one.",
				examples: []string{"pilot serve ls", "pilot serve ls --json"},
				exits:    exits[:2], result: reflect.TypeFor[localapi.ServeList](),
			}.String(),
			Action: p.serveList,
		}, {
			Name: "rm", Usage: "publish a port no more", ArgsUsage: "[tcp:|udp:|http:]PORT",
			Description: manual{
				about:    "Takes a published port back, at once and for good: connections that are open end. Without a protocol that is all that the port has.",
				examples: []string{"pilot serve rm 80", "pilot serve rm udp:53"},
				exits:    exits[:3], result: reflect.TypeFor[localapi.ServeList](),
				note: "what was removed",
			}.String(),
			Action: p.serveRemove,
		}},
		Description: manual{
			about: `Publishes a program of this host to other agents, as far as consents and their ports allow: what comes to PORT of the
agent's address is passed on to TARGET. It holds until "pilot serve rm", also over restarts. Where the agent has an
interface, a program that listens on its address is reached without this.

TARGET is a port of 127.0.0.1 (the same as PORT if it is left out), ADDRESS:PORT, or unix:/PATH for tcp and http. Targets
that are not on this host's loopback, and Unix sockets of other users' programs, may be published by root and by the
daemon's own user only.

With http: the program is told who asks, in headers that no caller can forge; what a caller sends under these names, or
ones that a program could mistake for them, is taken away:
  Pilot-Agent          its name, as the network's authority certified it
  Pilot-Agent-Key      its key
  Pilot-Agent-Address  its address in the network
  Pilot-Agent-Tags     its tags, with commas between; absent without any
Web sockets, streams, HTTP/2 without TLS and gRPC are passed on. The program should listen on loopback only: whoever
reaches it on another way can send such headers.`,
			examples: []string{"pilot serve 8080", "pilot serve http:80=8080", "pilot serve 80=127.0.0.1:8080", "pilot serve http:80=unix:/run/app.sock", "pilot serve udp:53=5353"},
			exits:    exits, result: reflect.TypeFor[localapi.ServeList](),
			note: "what was published",
		}.String(),
		Action: p.publish,
	}
}

// parseServe reads "[tcp:|udp:|http:]PORT[=TARGET]"; the protocol is empty where none is named.
func parseServe(arg string) (localapi.ServeRequest, error) {
	spec, target, hasTarget := strings.Cut(arg, "=")
	protocol, number, named := strings.Cut(spec, ":")
	if !named {
		protocol, number = "", spec
	}
	port, err := strconv.ParseUint(number, 10, 16)
	known := protocol == localapi.ServeTCP || protocol == localapi.ServeUDP || protocol == localapi.ServeHTTP
	if err != nil || port == 0 || named && !known || hasTarget && target == "" {
		e := usage("%q is not a port to publish", shown(arg))
		e.Hint = "write it like 8080, 80=8080, tcp:5432=127.0.0.1:5432, http:80=unix:/run/app.sock or udp:53=5353"
		return localapi.ServeRequest{}, e
	}
	return localapi.ServeRequest{Protocol: protocol, Port: uint16(port), Target: target}, nil
}

func (p *program) publish(c *cli.Context) error {
	return p.changeServed(c, localapi.ActionPublish, func(w io.Writer, s localapi.Served) {
		fmt.Fprintf(w, "published: %s is %s of this agent\n", safe(s.Target), portText(s))
	})
}

func (p *program) serveRemove(c *cli.Context) error {
	return p.changeServed(c, localapi.ActionRemove, func(w io.Writer, s localapi.Served) {
		fmt.Fprintf(w, "removed: %s (%s)\n", portText(s), safe(s.Target))
	})
}

func (p *program) changeServed(c *cli.Context, action string, say func(io.Writer, localapi.Served)) error {
	if err := positional(c, 1, 1); err != nil {
		return err
	}
	r, err := parseServe(c.Args().First())
	if err != nil {
		return err
	}
	if action == localapi.ActionRemove && r.Target != "" {
		return usage("to remove a port its target is not needed: %q", c.Args().First())
	}
	r.Action = action
	client, err := p.client(c)
	if err != nil {
		return err
	}
	list, err := ask(c.Context, askLimit, func(ctx context.Context) (localapi.ServeList, error) { return client.Serve(ctx, r) })
	if err != nil {
		return err
	}
	return p.show(c, list, func(w io.Writer) {
		for _, s := range list.Served {
			say(w, s)
		}
	})
}

// portText is "port 80 (http)".
func portText(s localapi.Served) string { return fmt.Sprintf("port %d (%s)", s.Port, safe(s.Protocol)) }

func (p *program) serveList(c *cli.Context) error {
	if err := positional(c, 0, 0); err != nil {
		return err
	}
	client, err := p.client(c)
	if err != nil {
		return err
	}
	list, err := ask(c.Context, askLimit, client.ServeList)
	if err != nil {
		return err
	}
	return p.show(c, list, func(w io.Writer) {
		if len(list.Served) == 0 {
			fmt.Fprintln(w, "nothing is published")
			return
		}
		writeServed(w, list.Served)
	})
}

func writeServed(w io.Writer, list []localapi.Served) {
	rows := [][]string{{"PORT", "TARGET", "NOW", "SO FAR", "RX", "TX", "REFUSED", "FAILED"}}
	for _, s := range list {
		rows = append(rows, []string{s.Protocol + ":" + strconv.Itoa(int(s.Port)), s.Target, strconv.Itoa(s.Active), strconv.FormatUint(s.Connections, 10),
			size(s.RxBytes), size(s.TxBytes), strconv.FormatUint(s.Refused, 10), strconv.FormatUint(s.Failed, 10)})
	}
	table(w, rows...)
	for _, s := range list {
		if s.Problem == nil {
			continue
		}
		fmt.Fprintf(w, "%s:%d: %s: %s\n", safe(s.Protocol), s.Port, safe(s.Problem.Code), safe(s.Problem.Message))
		if s.Problem.Hint != "" {
			fmt.Fprintf(w, "  hint: %s\n", safe(s.Problem.Hint))
		}
	}
}
