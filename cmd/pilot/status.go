// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilot-protocol/pilot/node/localapi"
)

func (p *program) statusCommand() *cli.Command {
	return &cli.Command{
		Name: "status", Usage: "show this agent, its peers and what is wrong",
		Description: manual{
			about: `Shows this agent, where it is reached, how it stands with the coordinator and the relays, and each peer: its state, bytes
received and sent, age of the last handshake, the path in use with its round-trip time, and why it is not a direct one, or
why the peer is not reachable.

states of a peer:
  connected   a session is open
  idle        reachable as far as is known; no session now
  trying      a handshake is under way
  offline     it does not answer, or the coordinator says that it is gone
  pending     a consent is missing
  refused     it was revoked, its key changed, or a consent was taken back

It ends with 3 unless the network is up, so that scripts can ask: pilot status >/dev/null && …`,
			examples: []string{"pilot status", `pilot status --json | jq '.peers[] | select(.state != "connected")'`},
			exits:    []int{localapi.ExitNotRunning, localapi.ExitForbidden, localapi.ExitState},
			result:   reflect.TypeFor[localapi.Status](),
		}.String(),
		Action: p.status,
	}
}

func (p *program) status(c *cli.Context) error {
	if err := positional(c, 0, 0); err != nil {
		return err
	}
	client, err := p.client(c)
	if err != nil {
		return err
	}
	s, err := ask(c.Context, askLimit, client.Status)
	if err != nil {
		return err
	}
	if err := p.show(c, s, func(w io.Writer) { writeStatus(w, s, time.Now()) }); err != nil {
		return err
	}
	if s.State != localapi.StateUp {
		return exit(localapi.ExitNotRunning)
	}
	return nil
}

func writeStatus(w io.Writer, s localapi.Status, now time.Time) {
	field(w, "state", "%s%s", s.State, stateNote(s.State))
	if s.Network != "" {
		field(w, "network", "%s  %s", s.Network, s.Authority)
	}
	writeSelf(w, s.Self, now)
	writeCoordinator(w, s.Coordinator, now)
	if s.Pending > 0 {
		field(w, "requests", "%d wait for your decision: pilot trust pending", s.Pending)
	}
	field(w, "daemon", "pilot %s, process %d", s.Version, s.PID)
	for _, problem := range s.Problems {
		field(w, "problem", "%s: %s", problem.Code, problem.Message)
		if problem.Hint != "" {
			field(w, "", "hint: %s", problem.Hint)
		}
	}
	writePeers(w, s.Peers, now)
	writeEgress(w, s.Egress, now)
	if len(s.Served) > 0 {
		fmt.Fprintln(w)
		writeServed(w, s.Served)
	}
	writeDrops(w, s.Drops)
}

// writeEgress prints what the program of a sandbox wants outside of its network.
func writeEgress(w io.Writer, e *localapi.Egress, now time.Time) {
	if e == nil {
		return
	}
	rules := "none"
	if len(e.Rules) > 0 {
		rules = strings.Join(e.Rules, ", ")
	}
	field(w, "egress", "%s", rules)
	field(w, "", "%d open, %d allowed and %d refused so far", e.Active, e.Accepted, e.Refused)
	if len(e.Last) == 0 {
		return
	}
	fmt.Fprintln(w)
	rows := [][]string{{"REFUSED", "TARGET", "TIMES", "LAST", "WHY"}}
	for _, r := range e.Last {
		rows = append(rows, []string{r.Kind, r.Target, fmt.Sprint(r.Count), ago(r.Time, now), r.Why})
	}
	table(w, rows...)
}

// field prints one line of the status. Its labels are longer than those of line.
func field(w io.Writer, label, format string, args ...any) {
	fmt.Fprintf(w, "%-13s%s\n", label, safe(fmt.Sprintf(format, args...)))
}

func stateNote(state string) string {
	switch state {
	case localapi.StateDown:
		return "  (no network is up: pilot up)"
	case localapi.StateStarting:
		return "  (not usable yet)"
	}
	return ""
}

func writeSelf(w io.Writer, self *localapi.Self, now time.Time) {
	if self == nil {
		return
	}
	field(w, "agent", "%s  %s", self.FQDN, self.Address)
	field(w, "key", "%s", self.Key)
	if len(self.Tags) > 0 {
		field(w, "tags", "%s", strings.Join(self.Tags, ", "))
	}
	field(w, "member", "certificate ends %s", until(self.CertificateExpires, now))
	if self.TUN == localapi.TUNUserspace {
		field(w, "interface", "none: %s, UDP port %d; names resolve in the proxies only", tunText(self.TUN, self.TUNWhy), self.Port)
	} else {
		field(w, "interface", "%s, UDP port %d, names by %s", self.Interface, self.Port, self.DNS)
	}
	if text := proxyText(self.SOCKS5, self.HTTPProxy, self.ProxyDirect); text != "" {
		field(w, "proxies", "%s; for programs: pilot env", text)
	}
	writePlace(w, self)
}

// writePlace prints where this node is in the networks below.
func writePlace(w io.Writer, self *localapi.Self) {
	var kinds []string
	byKind := map[string][]string{}
	for _, e := range self.Endpoints {
		if byKind[e.Kind] == nil {
			kinds = append(kinds, e.Kind)
		}
		byKind[e.Kind] = append(byKind[e.Kind], e.Addr.String())
	}
	label := "endpoints"
	for _, kind := range kinds {
		field(w, label, "%-9s  %s", kind, strings.Join(byKind[kind], " "))
		label = ""
	}
	if self.NAT != nil {
		field(w, "nat", "mapping %s, filtering %s", self.NAT.Mapping, self.NAT.Filtering)
	}
	label = "relays"
	others := 0
	for _, r := range self.Relays {
		if !r.Home && !r.Connected && !r.Avoided && r.Error == "" {
			others++
			continue
		}
		field(w, label, "%s", relayText(r))
		label = ""
	}
	if others > 0 {
		field(w, label, "%d not in use", others)
	}
	if len(self.AvoidJurisdictions) > 0 {
		field(w, "avoided", "relays under %s", strings.Join(self.AvoidJurisdictions, ", "))
	}
}

// relayText describes a relay on one line: "eu-1, home, by udp, 24 ms (region eu, jurisdiction de)".
func relayText(r localapi.RelayStatus) string {
	parts := []string{r.Name}
	if r.Home {
		parts = append(parts, "home")
	}
	switch {
	case r.Avoided:
		parts = append(parts, "not used: its jurisdiction is avoided")
	case r.Connected:
		parts = append(parts, "by "+r.Transport)
		if r.RTT > 0 {
			parts = append(parts, millis(r.RTT))
		}
	case r.Error != "":
		parts = append(parts, "not connected: "+r.Error)
	default:
		parts = append(parts, "not connected")
	}
	var at []string
	if r.Region != "" {
		at = append(at, "region "+r.Region)
	}
	if r.Jurisdiction != "" {
		at = append(at, "jurisdiction "+r.Jurisdiction)
	}
	text := strings.Join(parts, ", ")
	if len(at) > 0 {
		text += " (" + strings.Join(at, ", ") + ")"
	}
	return text
}

// pathText describes the path in use: "direct 203.0.113.7:41000 3 ms", "relay eu-1 24 ms (trying direct paths)".
func pathText(path string, rtt float64, why string) string {
	if path == "" {
		return ""
	}
	text := strings.TrimSuffix(path+" "+millis(rtt), " ")
	if why != "" {
		text += " (" + whyText(why) + ")"
	}
	return text
}

// whyText puts the codes for why a path is not direct into words. One that it doesn't know, of a newer daemon, is shown as it is.
func whyText(code string) string {
	switch code {
	case "trying":
		return "trying direct paths"
	case "no-candidates":
		return "the peer names no address that could be tried"
	case "no-answer":
		return "none of the peer's addresses answers"
	case "udp-blocked":
		return "UDP doesn't leave this host's network"
	case "peer-udp-blocked":
		return "UDP doesn't leave the peer's network"
	case "both-hard-nat":
		return "both NATs map per destination"
	case "unstable":
		return "a direct path broke twice and has to prove itself"
	case "idle":
		return "not in use; a direct path is tried when it is"
	}
	return code
}

func writeCoordinator(w io.Writer, co *localapi.CoordinatorState, now time.Time) {
	if co == nil {
		return
	}
	at := strings.Join(co.Addresses, ", ")
	if co.Hosted {
		at = strings.TrimPrefix(at+" (this host)", " ")
	}
	state := "connected"
	if !co.Connected {
		state = "not reached"
	}
	if !co.Since.IsZero() {
		state += " for " + period(now.Sub(co.Since))
	}
	field(w, "coordinator", "%s, %s", at, state)
	if co.Error != "" {
		field(w, "", "%s", co.Error)
	}
	if !co.Connected && co.NextTry.After(now) {
		field(w, "", "next try %s; open sessions and known peers go on meanwhile", until(co.NextTry, now))
	}
}

func writePeers(w io.Writer, peers []localapi.PeerStatus, now time.Time) {
	if len(peers) == 0 {
		return
	}
	fmt.Fprintln(w)
	rows := [][]string{{"PEER", "ADDRESS", "STATE", "RX", "TX", "HANDSHAKE", "PATH"}}
	for _, peer := range peers {
		rows = append(rows, []string{peer.Name, peer.Address.String(), peer.State, size(peer.RxBytes), size(peer.TxBytes),
			ago(peer.LastHandshake, now), pathText(peer.Path, peer.RTT, peer.Why)})
	}
	table(w, rows...)
	for _, peer := range peers {
		if peer.Problem == nil {
			continue
		}
		fmt.Fprintf(w, "%s: %s: %s\n", safe(peer.Name), safe(peer.Problem.Code), safe(peer.Problem.Message))
		if peer.Problem.Hint != "" {
			fmt.Fprintf(w, "  hint: %s\n", safe(peer.Problem.Hint))
		}
	}
}

func writeDrops(w io.Writer, drops map[string]uint64) {
	var parts []string
	for _, reason := range slices.Sorted(maps.Keys(drops)) {
		if drops[reason] > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", reason, drops[reason]))
		}
	}
	if len(parts) > 0 {
		fmt.Fprintf(w, "\ndropped packets: %s\n", safe(strings.Join(parts, ", ")))
	}
}
