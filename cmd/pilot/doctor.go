// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"reflect"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/doctor"
	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/platform/inspect"
)

func (p *program) doctorCommand() *cli.Command {
	return &cli.Command{
		Name: "doctor", Usage: "find what is wrong on this host, and what helps",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Usage: "show what is in order, too"},
		},
		Description: manual{
			about: `Looks at everything on this host that the network rests on, and says for each problem what helps: the driver for virtual
interfaces, IPv6, the service, the daemon's socket and who may open it, versions, the state folder, the clock, routes and
policy rules, other VPNs, the firewall, names and who decides on them, the coordinator, the certificate, relays, what the
network lets through, and the size of packets. It changes nothing, and takes some seconds.

It works without a daemon, and as any user: it says then what it could not look at. Root sees everything.

results:
  ok       in order
  warning  a problem for some uses, or one that is coming
  problem  it keeps the network from working
  unknown  it could not be looked at

Warnings are no failure. Codes are stable, and listed in docs/operating.md.`,
			examples: []string{"pilot doctor", "sudo pilot doctor --all", `pilot doctor --json | jq -r '.findings[] | select(.result == "problem") | .code'`},
			exits:    []int{localapi.ExitProblems},
			result:   reflect.TypeFor[doctor.Report](),
		}.String(),
		Action: p.doctor,
	}
}

func (p *program) doctor(c *cli.Context) error {
	if err := positional(c, 0, 0); err != nil {
		return err
	}
	dir, err := p.stateDir(c)
	if err != nil {
		return err
	}
	if own := p.sys.UserStateDir(); dir == own && !c.IsSet("state") && !exists(own) && p.forService() {
		dir = p.sys.DefaultStateDir() // this user has no daemon, and the host has one
	}
	r := doctor.Examine(p.facts(c.Context, dir))
	if err := c.Context.Err(); err != nil {
		return err
	}
	if err := p.show(c, r, func(w io.Writer) { writeReport(w, &r, c.Bool("all")) }); err != nil {
		return err
	}
	if !r.Well {
		return exit(localapi.ExitProblems)
	}
	return nil
}

// forService says whether this host is meant to have a daemon for all of its users.
func (p *program) forService() bool {
	return p.sys.Service().Installed() || exists(p.sys.DefaultStateDir())
}

// facts asks the daemon and looks at the host.
func (p *program) facts(ctx context.Context, dir string) doctor.Facts {
	f := doctor.Facts{Now: time.Now(), Version: p.ownVersion(), System: dir == p.sys.DefaultStateDir()}
	q := inspect.Question{StateDir: dir, Socket: p.sys.SocketPath(dir), System: f.System}
	client := p.clientAt(q.Socket)
	status, err := ask(ctx, askLimit, client.Status)
	if err != nil {
		f.DaemonErr = asError(err)
		f.Host = p.look(ctx, q)
		return f
	}
	f.Status = &status
	if self := status.Self; self != nil {
		if self.TUN != localapi.TUNUserspace {
			q.Interface, q.Address, q.Name = self.Interface, self.Address, self.FQDN
			q.Prefix = identity.PrefixOf(self.Address)
			q.Server = identity.ServiceAddress(q.Prefix)
		}
		checked, err := ask(ctx, askLimit, client.Netcheck)
		if err != nil {
			f.NetcheckErr = asError(err)
		} else {
			f.Netcheck = &checked
		}
	}
	f.Host = p.look(ctx, q)
	return f
}

func writeReport(w io.Writer, r *doctor.Report, all bool) {
	shown := 0
	for _, result := range []string{doctor.Problem, doctor.Warning, doctor.Unknown, doctor.OK} {
		for _, f := range r.Findings {
			if f.Result != result || result == doctor.OK && !all {
				continue
			}
			shown++
			text := f.Message
			if f.Code != "" {
				text = f.Code + ": " + text
			}
			fmt.Fprintf(w, "%-9s%-13s%s\n", f.Result, safe(f.Check), safe(text))
			if f.Hint != "" {
				fmt.Fprintf(w, "%-22shint: %s\n", "", safe(f.Hint))
			}
		}
	}
	if shown > 0 {
		fmt.Fprintln(w)
	}
	switch {
	case r.Problems > 0:
		fmt.Fprintf(w, "%s, %s", counted(r.Problems, "problem"), counted(r.Warnings, "warning"))
	case r.Warnings > 0:
		fmt.Fprintf(w, "no problem, %s", counted(r.Warnings, "warning"))
	default:
		fmt.Fprint(w, "all is well")
	}
	if r.Unseen > 0 {
		fmt.Fprintf(w, "; %s could not be looked at", counted(r.Unseen, "thing"))
	}
	fmt.Fprintln(w)
}

// counted is "1 thing", "2 things".
func counted(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}
