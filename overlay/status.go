// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"cmp"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/noise"
	"github.com/pilot-protocol/pilot/policy"
	"github.com/pilot-protocol/pilot/underlay"
)

// Drop is a reason for which a packet, record or handshake datagram was dropped. Denials by policy are counted apart.
type Drop uint8

// The reasons. Their String forms are stable codes.
const (
	DropMalformed      Drop = iota // not a packet that we can read
	DropRoutingHeader              // a routing header has no use here
	DropSourceNotLocal             // from the device, but not from an agent of this node
	DropNotUnicast                 // to a group of hosts
	DropNoRoute                    // to an address where nobody lives
	DropUnknownPeer                // to or from an agent that is not in the State
	DropTooBig                     // longer than the MTU
	DropQueueFull                  // too many wait for a handshake
	DropUnreachable                // the peer is offline or does not answer
	DropRefused                    // the peer refuses us
	DropSeal                       // the session ended meanwhile
	DropSend                       // the network refused the datagram
	DropDatagram                   // a datagram that is not ours
	DropUnknownSession             // a record for no session
	DropAuth                       // a record that is not authentic
	DropReplay                     // a record that came before
	DropInnerSource                // the packet inside is not from the session's agent
	DropInnerDest                  // the packet inside is not for the session's local agent
	DropMessage                    // a control message that is malformed or comes too fast
	DropHandshakeFlood             // handshakes come faster than they can be worked on
	DropHandshake                  // a handshake that failed
	DropDevice                     // the device refused the packet
	DropStack                      // the userspace stack sent to somebody who is not local
	DropPart                       // a part of a packet that is malformed, or came before
	DropParts                      // a packet that was given up because some of its parts did not come
	DropECN                        // congestion was marked on a packet that can't carry the mark
	dropCount
)

var dropCodes = [dropCount]string{
	DropMalformed: "malformed", DropRoutingHeader: "routing-header", DropSourceNotLocal: "source-not-local",
	DropNotUnicast: "not-unicast", DropNoRoute: "no-route", DropUnknownPeer: "unknown-peer", DropTooBig: "too-big",
	DropQueueFull: "queue-full", DropUnreachable: "unreachable", DropRefused: "refused", DropSeal: "seal-failed",
	DropSend: "send-failed", DropDatagram: "not-ours", DropUnknownSession: "unknown-session", DropAuth: "not-authentic",
	DropReplay: "replayed", DropInnerSource: "inner-source", DropInnerDest: "inner-destination",
	DropMessage: "message", DropHandshakeFlood: "handshake-flood", DropHandshake: "handshake-failed",
	DropDevice: "device", DropStack: "stack-destination", DropPart: "part", DropParts: "parts-missing",
	DropECN: "ecn",
}

// String returns the reason's stable code.
func (d Drop) String() string {
	if d < dropCount {
		return dropCodes[d]
	}
	return "unknown"
}

const verdicts = int(policy.DenyExpired) + 1

type counters struct {
	drops     [dropCount]atomic.Uint64
	deniedOut [verdicts]atomic.Uint64
	deniedIn  [verdicts]atomic.Uint64
}

func (c *counters) drop(d Drop) { c.drops[d].Add(1) }

// Status is a reading of all counters and links.
type Status struct {
	Peers []PeerStatus
	// Drops counts by code, those above 0 only: a Drop, or "denied-out-" or "denied-in-" and a policy.Verdict.
	Drops         map[string]uint64
	DroppedEvents uint64
	Sessions      int // all that can receive, older ones included
}

// Session states of PeerStatus.
const (
	StateNone        = "none"        // no session, none wanted
	StateHandshaking = "handshaking" // no session yet
	StateUp          = "up"
)

// PeerStatus is what is known of a local agent's link with a peer. Times are zero where something never happened.
type PeerStatus struct {
	Local, Agent         identity.AgentPublic
	Addr                 netip.Addr
	State                string
	Trust                policy.Verdict
	Path                 underlay.Path  // zero without a session
	Paths                []PathStatus   // of the session, the one in use first
	Why                  string         // a stable code for why the path in use is not direct; empty if it is, or without a session
	Observed             netip.AddrPort // the address that the peer sees us at; invalid: not known
	RTT                  time.Duration  // last measured, 0: never
	MTU                  int            // length of the longest packet that travels whole on the path in use; 0: no session, or it is being looked for
	RxBytes, TxBytes     uint64         // of inner packets
	RxPackets, TxPackets uint64
	LastHandshake        time.Time
	LastReceived         time.Time
	Failure              Reason // why the last handshake failed; empty when it succeeded
	FailureTime          time.Time
	Refusal              string // what the peer refused last, as its own code: show it as the peer's
	RefusalTime          time.Time
}

// PathStatus is what is known of one path of a session.
type PathStatus struct {
	Path   underlay.Path
	State  string // a paths.State
	InUse  bool
	RTT    time.Duration // smoothed; 0: never measured
	Proved time.Time     // when a pong came last
}

// Status reads the counters. It is not meant for every packet but may be called at any time.
func (o *Overlay) Status() Status {
	now := o.now()
	st := Status{Drops: make(map[string]uint64), DroppedEvents: o.events.dropped.Load(), Sessions: o.sessions.count()}
	for d := range dropCount {
		if n := o.counters.drops[d].Load(); n > 0 {
			st.Drops[d.String()] = n
		}
	}
	for v := range verdicts {
		if n := o.counters.deniedOut[v].Load(); n > 0 {
			st.Drops["denied-out-"+policy.Verdict(v).String()] = n
		}
		if n := o.counters.deniedIn[v].Load(); n > 0 {
			st.Drops["denied-in-"+policy.Verdict(v).String()] = n
		}
	}
	o.mu.Lock()
	defer o.unlock()
	for _, r := range o.snap.Load().routes {
		st.Peers = append(st.Peers, o.peerStatusLocked(r, now))
	}
	slices.SortFunc(st.Peers, func(a, b PeerStatus) int {
		return cmp.Or(a.Addr.Compare(b.Addr), slices.Compare(a.Local[:], b.Local[:]))
	})
	return st
}

func (o *Overlay) peerStatusLocked(r route, now moment) PeerStatus {
	l := r.link
	p := PeerStatus{
		Local: l.local, Agent: l.remote, Addr: l.addr, State: StateNone, Trust: r.rules.Trust(l.addr, now.wall), RTT: l.rtt,
		RxBytes: l.rxBytes.Load(), TxBytes: l.txBytes.Load(), RxPackets: l.rxPackets.Load(), TxPackets: l.txPackets.Load(),
		LastHandshake: l.lastHandshake, Failure: l.failure.reason, FailureTime: o.wallAt(l.failure.at),
		Refusal: l.refusal.code, RefusalTime: o.wallAt(l.refusal.at), LastReceived: o.wallAt(time.Duration(l.received.Load())),
	}
	if s := l.current.Load(); s != nil {
		p.State, p.Path = StateUp, *s.path.Load()
		if f := s.sizes.found.Load(); f.settled {
			p.MTU = f.limit - noise.Overhead
		}
		p.Why, p.Observed = l.paths.Why(now.at), l.observed
		for _, w := range l.paths.Status() {
			p.Paths = append(p.Paths, PathStatus{Path: w.Path, State: w.State.String(), InUse: w.InUse, RTT: w.RTT, Proved: o.wallAt(w.Proof)})
		}
	} else if l.attempt.active {
		p.State = StateHandshaking
	}
	return p
}

func (o *Overlay) wallAt(at time.Duration) time.Time {
	if at == 0 {
		return time.Time{}
	}
	return o.epoch.Add(at)
}
