// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"reflect"

	"github.com/urfave/cli/v2"

	"github.com/pilot-protocol/pilot/node/localapi"
)

func (p *program) netcheckCommand() *cli.Command {
	return &cli.Command{
		Name: "netcheck", Usage: "find out what the network is like that this host is in",
		Description: manual{
			about: `Asks the network's relays how they see this host, and says what that means for direct connections: whether UDP gets out, over
IPv4 and IPv6, how addresses are translated and filtered, whether the gateway forwards a port, how far each relay is, which
proxy is used, and whether somebody else answers in the relays' place, as a login page does. It takes some seconds and
needs a network that is up.

codes:
  open         others reach this host directly
  firewall     nothing is translated; a firewall lets answers in
  easy-nat     translated, one outer address for all destinations
  hard-nat     translated, another outer port for each destination
  udp-blocked  only TCP gets out
  captive      somebody else answers in a relay's place
  offline      no relay answers
  no-relays    no relay is known, so that little can be told
  unclear      UDP works, and the translation could not be told`,
			examples: []string{"pilot netcheck", "pilot netcheck --json | jq -r .code"},
			exits:    []int{localapi.ExitNotRunning, localapi.ExitForbidden, localapi.ExitUnreachable},
			result:   reflect.TypeFor[localapi.Netcheck](),
		}.String(),
		Action: p.netcheck,
	}
}

func (p *program) netcheck(c *cli.Context) error {
	if err := positional(c, 0, 0); err != nil {
		return err
	}
	client, err := p.client(c)
	if err != nil {
		return err
	}
	r, err := ask(c.Context, askLimit, client.Netcheck)
	if err != nil {
		return err
	}
	return p.show(c, r, func(w io.Writer) { writeNetcheck(w, &r) })
}

func writeNetcheck(w io.Writer, r *localapi.Netcheck) {
	field(w, "verdict", "%s", r.Verdict)
	field(w, "code", "%s", r.Code)
	writeFamily(w, "IPv4", &r.IPv4)
	writeFamily(w, "IPv6", &r.IPv6)
	field(w, "NAT", "mapping %s, filtering %s, hairpin %s", r.NAT.Mapping, r.NAT.Filtering, r.Hairpin)
	if m := r.Mapping; m != nil {
		field(w, "forwarding", "%s by the gateway (%s)", m.External, m.Protocol)
	} else {
		field(w, "forwarding", "none by the gateway")
	}
	if r.Proxy != "" {
		field(w, "proxy", "%s", r.Proxy)
	}
	if r.Captive {
		field(w, "captive", "somebody else answers in a relay's place")
	}
	if len(r.Relays) == 0 {
		return
	}
	fmt.Fprintln(w)
	rows := [][]string{{"RELAY", "REGION", "UDP", "TLS", "NOTE"}}
	for _, x := range r.Relays {
		note := x.Error
		if x.Home {
			note = "home"
			if x.Error != "" {
				note += ": " + x.Error
			}
		}
		row := []string{x.Name, x.Region, millis(x.UDP), millis(x.TLS)}
		if note != "" {
			row = append(row, note)
		}
		rows = append(rows, row)
	}
	table(w, rows...)
}

func writeFamily(w io.Writer, name string, f *localapi.NetcheckFamily) {
	seen := ""
	if f.Reflexive.IsValid() {
		seen = fmt.Sprintf(", seen as %s", f.Reflexive)
	}
	hosts := "no address"
	if n := len(f.Hosts); n > 0 {
		hosts = f.Hosts[0].String()
		if n > 1 {
			hosts += fmt.Sprintf(" and %d more", n-1)
		}
	}
	field(w, name, "%s, UDP %s%s", hosts, f.UDP, seen)
}
