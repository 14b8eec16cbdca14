// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// holdTableScript has nft make a table that belongs to it as long as standard input is open: nobody else can have that name.
const holdTableScript = `
import subprocess, sys
nft = subprocess.Popen(["nft", "-i"], stdin=subprocess.PIPE, text=True)
nft.stdin.write("add table ip6 %s { flags owner; }\n" % sys.argv[1])
nft.stdin.flush()
nft.wait()
`

// hearScript prints each datagram that comes to a port.
const hearScript = `
import socket
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.bind(("::", 9999))
print("listening", flush=True)
while True:
    data, sender = s.recvfrom(2000)
    print(data.decode(), "from", sender[0], flush=True)
`

// sayScript sends a datagram from an address, be it this host's or not, to an address.
const sayScript = `
import socket, sys
IPV6_TRANSPARENT = 75
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
s.bind((sys.argv[1], 0))
s.sendto(sys.argv[3].encode(), (sys.argv[2], 9999))
`

// neighbour is somebody on the link of a host: no member, with a route by that host to its agent's address and to a peer's.
type neighbour struct {
	*Host
	victim      *Host
	self        netip.Addr // on the link
	agent, peer netip.Addr // the victim's, and that of one whom it trusts
	hears       map[netip.Addr]*Process
	datagrams   int
}

func newNeighbour(ctx context.Context, m *trio, agent, peer netip.Addr) *neighbour {
	n := &neighbour{Host: m.c, victim: m.a, self: netip.MustParseAddr("2001:db8::12"), agent: agent, peer: peer, hears: map[netip.Addr]*Process{}}
	m.link["a"].Add("2001:db8::10/64")
	m.link["c"].Add("2001:db8::12/64")
	for to, h := range map[netip.Addr]*Host{agent: m.a, peer: m.b} {
		n.Must(ctx, "ip", "-6", "route", "add", to.String(), "via", "2001:db8::10", "dev", "eth0")
		n.hears[to] = h.Start("python3", "-c", hearScript)
		m.wait("listening", n.hears[to])
	}
	return n
}

// dropped is how much the victim's fence kept out.
func (n *neighbour) dropped(t *testing.T) uint64 {
	t.Helper()
	return pilot[localapi.Status](t, n.victim, "status").Drops["past-tunnel"]
}

// send tells whether a datagram arrives at an agent's program. It may come from any address.
func (n *neighbour) send(ctx context.Context, t *testing.T, from, to netip.Addr) (arrived bool) {
	t.Helper()
	before := n.dropped(t)
	n.datagrams++
	text := fmt.Sprintf("datagram %d", n.datagrams)
	n.Must(ctx, "python3", "-c", sayScript, from.String(), to.String(), text)
	Eventually(t, 10*time.Second, func(context.Context) error {
		arrived = strings.Contains(n.hears[to].Logs(), fmt.Sprintf("%s from %v\n", text, from))
		if !arrived && n.dropped(t) == before {
			return errors.New("neither arrived nor dropped")
		}
		return nil
	})
	return arrived
}

// connects tells whether the neighbour gets a page from the agent past the tunnel.
func (n *neighbour) connects(ctx context.Context) bool {
	return n.Run(ctx, "curl", "-sS", "--max-time", "2", "-o", "/dev/null", "-g", fmt.Sprintf("http://[%v]/", n.agent)).OK()
}

// Somebody on the link who knows an agent's address sends to it past the tunnel, in a peer's name and in their own, and into
// the tunnel in the agent's name. Nothing of that gets through, and it is counted. Where the kernel doesn't let pilot see to that all of it does get in, and pilot says so.
func TestAbuse14PastTheTunnel(t *testing.T) {
	ctx := deadline(t, 90*time.Second)
	m := openTrio(t, "nft", "ip")
	before := m.a.Snapshot()
	taken := m.a.Start("python3", "-c", holdTableScript, "pilot0")
	m.a.Probe(10*time.Second, "nft", "list", "table", "ip6", "pilot0")
	planner := found(t, m.a, "planner")
	if len(planner.Warnings) != 1 || !strings.Contains(planner.Warnings[0], "past the tunnel") {
		t.Errorf("where the table can't be made up warns: %q", planner.Warnings)
	}
	warehouse := joinBy(t, m.b, "warehouse", planner.Invite)
	m.a.WriteFile("index.html", "the plan", 0o644)
	web := serve(m.a)
	get(t, m.b, "http://planner/", "the plan")

	n := newNeighbour(ctx, m, planner.Address, warehouse.Address)
	m.a.Must(ctx, "sysctl", "-q", "-w", "net.ipv6.conf.all.forwarding=1")
	if !n.send(ctx, t, n.peer, n.agent) || !n.send(ctx, t, n.self, n.agent) || !n.send(ctx, t, n.agent, n.peer) || !n.connects(ctx) {
		t.Fatal("where there is no fence nothing comes past the tunnel: this test would show nothing")
	}
	if codes, r, err := diagnose(m.a); err != nil || !slices.Contains(codes, "UNFENCED") {
		t.Errorf("doctor found %q, %v: %v", codes, err, r)
	}

	// As soon as pilot can have its table, it has.
	taken.Kill()
	Eventually(t, 20*time.Second, func(context.Context) error {
		for _, p := range pilot[localapi.Status](t, m.a, "status").Problems {
			if p.Code == localapi.CodeUnfenced {
				return fmt.Errorf("%+v", p)
			}
		}
		return nil
	})
	// Not even a firewall that loads all its rules anew takes it away.
	m.a.Must(ctx, "nft", "flush", "ruleset")
	if n.send(ctx, t, n.peer, n.agent) {
		t.Error("a datagram in a peer's name arrived past the tunnel")
	}
	if n.send(ctx, t, n.self, n.agent) {
		t.Error("a datagram arrived past the tunnel, and past consent")
	}
	if n.send(ctx, t, n.agent, n.peer) {
		t.Error("a datagram arrived at a peer in the name of this host's agent, who did not send it")
	}
	if n.connects(ctx) {
		t.Error("a connection came about past the tunnel, and past consent")
	}
	// What goes through the tunnel isn't concerned, and neither is this host itself.
	get(t, m.b, "http://planner/", "the plan")
	get(t, m.a, fmt.Sprintf("http://[%v]/", planner.Address), "the plan")
	if codes, r, err := diagnose(m.a); err != nil || slices.Contains(codes, "UNFENCED") {
		t.Errorf("doctor found %q, %v: %v", codes, err, r)
	}

	// Nothing stays, killed or not.
	list := func() string { return strings.TrimSpace(m.a.Must(ctx, "nft", "list", "ruleset")) }
	if !strings.Contains(list(), "table ip6 pilot0") {
		t.Errorf("no such table: %s", list())
	}
	crash(t, m.a)
	if rules := list(); rules != "" {
		t.Errorf("a daemon that was killed left %s", rules)
	}
	pilot[localapi.UpResult](t, m.a, "up")
	pilot[localapi.DownResult](t, m.a, "down")
	web.Kill()
	n.hears[n.agent].Kill()
	m.a.Must(ctx, "sysctl", "-q", "-w", "net.ipv6.conf.all.forwarding=0")
	m.link["a"].Remove("2001:db8::10/64")
	untouched(t, m.a, before)
}

// Daemons of two networks on one host have nothing to do with each other's tables.
func TestFencesOfTwoNetworks(t *testing.T) {
	ctx := deadline(t, time.Minute)
	m := openTrio(t, "nft")
	other := []string{"--state", "/var/lib/other"}
	planner := found(t, m.a, "planner")
	second := pilot[localapi.UpResult](t, m.a, append([]string{"up", "--name", "second", "--network", "other", "--coordinator-listen", ":7799"}, other...)...)
	join(t, m.a, m.b, "warehouse")
	invite := pilot[localapi.InviteResult](t, m.a, append([]string{"invite"}, other...)...)
	pilotInput[localapi.UpResult](t, m.c, invite.Invite, "up", "--name", "auditor", "-")
	m.a.WriteFile("index.html", "the plan", 0o644)
	serve(m.a)
	get(t, m.b, fmt.Sprintf("http://[%v]/", planner.Address), "the plan")
	get(t, m.c, fmt.Sprintf("http://[%v]/", second.Address), "the plan")
	// Each keeps its own when the other one goes.
	pilot[localapi.DownResult](t, m.a, append([]string{"down"}, other...)...)
	if rules := m.a.Must(ctx, "nft", "list", "ruleset"); !strings.Contains(rules, "table ip6 pilot0") || strings.Contains(rules, "table ip6 pilot1") {
		t.Errorf("with one of two: %s", rules)
	}
	get(t, m.b, fmt.Sprintf("http://[%v]/", planner.Address), "the plan")
}
