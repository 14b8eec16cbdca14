// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"net/netip"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/overlay/packet"
	"github.com/pilot-protocol/pilot/policy"
)

var (
	here  = netip.MustParseAddr("fd00::a:1")
	there = netip.MustParseAddr("fd00::b:2")
)

// flowKit asks a flow table about packets between here and there.
type flowKit struct {
	t     *testing.T
	table *flowTable
	q     question
}

func newFlowKit(t *testing.T, inbound, outbound *policy.Grant) *flowKit {
	k := &flowKit{t: t, table: newFlowTable()}
	k.q = question{local: addresses(here, there), peer: there, generation: 1}
	k.q.now = moment{wall: time.Unix(1_900_000_000, 0), at: time.Hour}
	k.rules(inbound, outbound)
	return k
}

func (k *flowKit) rules(inbound, outbound *policy.Grant) {
	k.q.rules = policy.Compile([]policy.Rule{{Addr: there, Inbound: inbound, Outbound: outbound}})
	k.q.generation++
}

func (k *flowKit) pass(d time.Duration) {
	k.q.now.wall, k.q.now.at = k.q.now.wall.Add(d), k.q.now.at+d
}

func (k *flowKit) out(p []byte, want policy.Verdict) { k.t.Helper(); k.ask(true, p, want) }
func (k *flowKit) in(p []byte, want policy.Verdict)  { k.t.Helper(); k.ask(false, p, want) }

func (k *flowKit) ask(outbound bool, p []byte, want policy.Verdict) {
	k.t.Helper()
	var info packet.Info
	if err := packet.Parse(p, &info); err != nil {
		k.t.Fatal(err)
	}
	k.q.outbound = outbound
	if got := k.table.permit(&k.q, p, &info); got != want {
		k.t.Errorf("outbound %v: got %v, want %v", outbound, got, want)
	}
}

func tcpOnly(port uint16) *policy.Grant {
	return &policy.Grant{Ports: []identity.PortRange{{Proto: 6, First: port, Last: port}}}
}

func TestFlowAnswersComeBack(t *testing.T) {
	k := newFlowKit(t, tcpOnly(80), &policy.Grant{})
	answer := tcpPacket(there, here, 443, 1000, packet.SYN|packet.ACK)
	k.in(answer, policy.DenyPort)
	k.out(tcpPacket(here, there, 1000, 443, packet.SYN), policy.Allow)
	k.in(answer, policy.Allow)
	k.in(tcpPacket(there, here, 443, 1001, packet.ACK), policy.DenyPort)
	k.in(udpPacket(there, here, 443, 1000, ""), policy.DenyPort)
	// The way back is for answers: it opens nothing.
	k.in(tcpPacket(there, here, 443, 1000, packet.SYN), policy.DenyPort)
	k.in(answer, policy.Allow)
}

func TestFlowOfThePeer(t *testing.T) {
	k := newFlowKit(t, tcpOnly(80), tcpOnly(443))
	k.in(tcpPacket(there, here, 1000, 80, packet.SYN), policy.Allow)
	k.out(tcpPacket(here, there, 80, 1000, packet.SYN|packet.ACK), policy.Allow)
	k.out(tcpPacket(here, there, 80, 1001, packet.SYN|packet.ACK), policy.DenyPort)
}

func TestFlowIsAskedOncePerState(t *testing.T) {
	k := newFlowKit(t, &policy.Grant{}, &policy.Grant{})
	syn, ack := tcpPacket(here, there, 1000, 443, packet.SYN), tcpPacket(there, here, 443, 1000, packet.ACK)
	k.out(syn, policy.Allow)
	rules := k.q.rules
	k.q.rules = nil // would deny
	k.in(ack, policy.Allow)
	k.q.rules = rules
	k.rules(&policy.Grant{}, nil)
	k.in(ack, policy.DenyNoConsentPeer)
	k.out(syn, policy.DenyNoConsentPeer)
	k.rules(tcpOnly(80), &policy.Grant{}) // the flow is still the opener's
	k.in(ack, policy.Allow)
	k.rules(&policy.Grant{}, tcpOnly(80)) // now it may not be opened from here, but from there
	k.in(tcpPacket(there, here, 443, 1000, packet.SYN), policy.Allow)
	k.out(tcpPacket(here, there, 1000, 443, packet.ACK), policy.Allow)
}

func TestFlowNoticesExpiry(t *testing.T) {
	k := newFlowKit(t, &policy.Grant{}, &policy.Grant{})
	k.rules(&policy.Grant{Expiry: k.q.now.wall.Add(10 * time.Second)}, &policy.Grant{})
	p := udpPacket(here, there, 1000, 53, "")
	for range 19 {
		k.out(p, policy.Allow)
		k.pass(500 * time.Millisecond)
	}
	k.pass(1500 * time.Millisecond)
	k.out(p, policy.DenyExpired)
	k.in(udpPacket(there, here, 53, 1000, ""), policy.DenyExpired)
}

func TestFlowGoesIdle(t *testing.T) {
	for _, tt := range []struct {
		name         string
		open, answer []byte
		idle         time.Duration
	}{
		{"udp", udpPacket(here, there, 1000, 53, ""), udpPacket(there, here, 53, 1000, ""), idleUDP},
		{"tcp", tcpPacket(here, there, 1000, 443, packet.ACK), tcpPacket(there, here, 443, 1000, packet.ACK), idleTCP},
		{"tcp after FIN", tcpPacket(here, there, 1000, 443, packet.ACK|packet.FIN), tcpPacket(there, here, 443, 1000, packet.ACK), idleClosing},
	} {
		k := newFlowKit(t, tcpOnly(80), &policy.Grant{})
		k.out(tt.open, policy.Allow)
		k.pass(tt.idle - time.Second)
		k.in(tt.answer, policy.Allow)
		k.pass(tt.idle + time.Second)
		k.in(tt.answer, policy.DenyPort)
	}
}

func TestFlowEcho(t *testing.T) {
	k := newFlowKit(t, tcpOnly(80), tcpOnly(80))
	echo := []byte{packet.TypeEchoRequest, 0, 0, 0, 0, 7, 0, 1}
	k.out(ipPacket(here, there, packet.ICMPv6, echo), policy.Allow)
	echo[0] = packet.TypeEchoReply
	k.in(ipPacket(there, here, packet.ICMPv6, echo), policy.Allow)
}

func TestFlowErrors(t *testing.T) {
	k := newFlowKit(t, tcpOnly(80), &policy.Grant{})
	about := udpPacket(here, there, 1000, 53, "question")
	quote := func(p []byte) []byte {
		return ipPacket(there, here, packet.ICMPv6, append([]byte{1, 4, 0, 0, 0, 0, 0, 0}, p...))
	}
	k.in(quote(about), policy.DenyPort)
	k.out(about, policy.Allow)
	k.in(quote(about), policy.Allow)
	k.in(quote(udpPacket(here, there, 1001, 53, "question")), policy.DenyPort)
	k.in(quote(udpPacket(there, here, 53, 1000, "question")), policy.DenyPort)
	k.in(quote(udpPacket(here, here, 1000, 53, "question")), policy.DenyPort)
	// Ours about a packet of theirs.
	theirs := tcpPacket(there, here, 1000, 80, packet.SYN)
	k.in(theirs, policy.Allow)
	k.out(ipPacket(here, there, packet.ICMPv6, append([]byte{1, 4, 0, 0, 0, 0, 0, 0}, theirs...)), policy.Allow)
}

// A fragment that is allowed one way opens no way back: its answer could be a fragment of anything.
func TestAbuse15FragmentsOpenNoFlow(t *testing.T) {
	k := newFlowKit(t, tcpOnly(80), &policy.Grant{})
	body := append([]byte{packet.TCP, 0, 0, 1, 0, 0, 0, 1}, tcpPacket(here, there, 1000, 22, packet.SYN)[40:]...)
	k.out(ipPacket(here, there, packet.Fragment, body), policy.Allow)
	k.in(ipPacket(there, here, packet.Fragment, body), policy.DenyPort)
	k.out(ipPacket(here, there, 253, body), policy.Allow)
	k.in(ipPacket(there, here, 253, body), policy.DenyPort)
}

// The table is of fixed size: many flows push out the ones that are idle for longest, and asking again is all that
// costs.
func TestFlowTableIsBounded(t *testing.T) {
	k := newFlowKit(t, &policy.Grant{}, &policy.Grant{})
	busy := tcpPacket(here, there, 1, 443, packet.ACK)
	for i := range 4 * flowBuckets * flowWays {
		k.out(udpPacket(here, there, uint16(i), uint16(i>>16)+1, ""), policy.Allow)
		if i%1000 == 0 {
			k.out(busy, policy.Allow)
			k.pass(time.Millisecond)
		}
	}
	used := 0
	for i := range k.table.shards {
		shard := k.table.shards[i].Load()
		for j := range shard {
			for _, f := range shard[j].flows {
				if f.used {
					used++
				}
			}
		}
	}
	if used < flowBuckets*flowWays*9/10 {
		t.Errorf("%d flows", used)
	}
	k.q.rules = nil
	k.in(tcpPacket(there, here, 443, 1, packet.ACK), policy.Allow) // still remembered
}
