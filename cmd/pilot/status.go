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
			about: `Shows this agent, how it stands with the coordinator, and each peer: its state, path, round-trip time, bytes received and
sent, age of the last handshake, and why it is not reachable.

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
	writeDrops(w, s.Drops)
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
	field(w, "interface", "%s, UDP port %d, names by %s", self.Interface, self.Port, self.DNS)
	if len(self.Endpoints) > 0 {
		endpoints := make([]string, len(self.Endpoints))
		for i, e := range self.Endpoints {
			endpoints[i] = e.String()
		}
		field(w, "endpoints", "%s", strings.Join(endpoints, " "))
	}
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
	rows := [][]string{{"PEER", "ADDRESS", "STATE", "PATH", "RTT", "RX", "TX", "HANDSHAKE"}}
	for _, peer := range peers {
		rows = append(rows, []string{peer.Name, peer.Address.String(), peer.State, peer.Path, millis(peer.RTT),
			size(peer.RxBytes), size(peer.TxBytes), ago(peer.LastHandshake, now)})
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
