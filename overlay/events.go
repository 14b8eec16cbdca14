// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/underlay"
)

// Event is one of SessionUp, SessionDown, PathChanged, Calling, HandshakeFailed and UnknownPeer.
type Event interface{ event() }

// SessionUp says that a peer without a session has one now. Renewals are not told.
type SessionUp struct {
	Local, Agent identity.AgentPublic
	Addr         netip.Addr
	Path         underlay.Path
}

// SessionDown says that a peer has no session any more.
type SessionDown struct {
	Local, Agent identity.AgentPublic
	Addr         netip.Addr
	Reason       Reason
}

// PathChanged says that a peer was heard at another address, and is answered there from now on.
type PathChanged struct {
	Local, Agent identity.AgentPublic
	Addr         netip.Addr
	Path         underlay.Path
}

// Calling says that an attempt to reach a peer begins: a signal tells it to reach out too. It comes once for each attempt
// that makes a session where there was none, or where the one there is does not answer.
type Calling struct {
	Local, Agent identity.AgentPublic
	Addr         netip.Addr
}

// HandshakeFailed says that a peer did not answer, or not well.
type HandshakeFailed struct {
	Local, Agent identity.AgentPublic
	Addr         netip.Addr
	Reason       Reason
}

// UnknownPeer says that somebody whom a local agent doesn't know wants to talk with it: a program of its sent to Addr, or
// Agent, a member of the network, called. The other field is zero. The same one is told at most once in five seconds.
type UnknownPeer struct {
	Local identity.AgentPublic
	Agent identity.AgentPublic
	Addr  netip.Addr
}

func (SessionUp) event()       {}
func (SessionDown) event()     {}
func (PathChanged) event()     {}
func (Calling) event()         {}
func (HandshakeFailed) event() {}
func (UnknownPeer) event()     {}

// Reason is a stable code for why something ended or did not happen.
type Reason string

// The reasons.
const (
	ReasonTimeout     Reason = "timeout"      // no answer from any of the peer's addresses
	ReasonNoAddress   Reason = "no-address"   // nobody knows where the peer is
	ReasonOffline     Reason = "offline"      // the coordinator says that the peer is not there
	ReasonSilent      Reason = "silent"       // the peer stopped answering
	ReasonExpired     Reason = "expired"      // not used for too long
	ReasonClosed      Reason = "closed"       // the peer's node ended
	ReasonNotTrusted  Reason = "not-trusted"  // one of the two consents is missing, withdrawn or expired
	ReasonRevoked     Reason = "revoked"      // the authority took the peer's certificate back
	ReasonKeyMismatch Reason = "key-mismatch" // the peer's keys or statements do not belong together
	ReasonCredentials Reason = "credentials"  // a certificate or tunnel statement is not valid now
	ReasonSuite       Reason = "suite"        // no cipher suite in common
	ReasonProtocol    Reason = "protocol"     // the peer's answer could not be read
	ReasonLocal       Reason = "local"        // this node could not make a first message
)

const (
	unknownEvery = 5 * time.Second
	unknownLimit = 1024 // remembered at once
)

// eventSink is the events' channel, and the memory that keeps UnknownPeer from flooding it.
type eventSink struct {
	ch      chan Event
	dropped atomic.Uint64

	mu      sync.Mutex // guards unknown; held for a map look-up only
	unknown map[UnknownPeer]time.Duration
}

func (e *eventSink) init() {
	e.ch = make(chan Event, eventBuffer)
	e.unknown = make(map[UnknownPeer]time.Duration)
}

func (e *eventSink) emit(v Event) {
	select {
	case e.ch <- v:
	default:
		e.dropped.Add(1)
	}
}

func (e *eventSink) emitUnknown(v UnknownPeer, now time.Duration) {
	e.mu.Lock()
	last, known := e.unknown[v]
	if known && now-last < unknownEvery {
		e.mu.Unlock()
		return
	}
	if !known && len(e.unknown) >= unknownLimit {
		for k, at := range e.unknown {
			if now-at >= unknownEvery {
				delete(e.unknown, k)
			}
		}
		if len(e.unknown) >= unknownLimit {
			e.mu.Unlock()
			e.dropped.Add(1)
			return
		}
	}
	e.unknown[v] = now
	e.mu.Unlock()
	e.emit(v)
}
