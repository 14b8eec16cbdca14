// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
)

const (
	// signalEvery is the shortest time from one signal to a peer to the next. The coordinator allows as much.
	signalEvery = 4 * time.Second
	// signalAge is how far the time in a signal may be from this host's, as in handshakes.
	signalAge = 5 * time.Minute
	// signalLimit bounds one call of the coordinator: what is later is too late.
	signalLimit = 5 * time.Second
	// waitingCalls is how many calls wait to be signalled.
	waitingCalls = 64
)

var (
	errStale    = errors.New("it is not of these minutes, or came before")
	errStranger = errors.New("its sender is not trusted")
)

// signals is the memory that keeps one node from calling a peer too often, and from being called twice by one signal.
type signals struct {
	sent  map[identity.AgentPublic]uint64    // serial of the last one to a peer
	next  map[identity.AgentPublic]time.Time // when the next may follow
	heard map[identity.AgentPublic]uint64    // serial of the last one from a peer
}

func newSignals() signals {
	return signals{
		sent: map[identity.AgentPublic]uint64{}, next: map[identity.AgentPublic]time.Time{}, heard: map[identity.AgentPublic]uint64{},
	}
}

// serial returns the serial of the next signal to a peer, and whether one may be sent now.
func (s signals) serial(to identity.AgentPublic, now time.Time) (uint64, bool) {
	if wait := s.next[to].Sub(now); wait > 0 && wait <= signalEvery { // a longer one is of a clock that was set back
		return 0, false
	}
	s.next[to] = now.Add(signalEvery)
	s.sent[to] = max(uint64(now.UnixMilli()), s.sent[to]+1)
	return s.sent[to], true
}

// take checks a signal that came, and remembers it.
func (s signals) take(signal identity.Signal, now time.Time) error {
	oldest, newest := uint64(now.Add(-signalAge).UnixMilli()), uint64(now.Add(signalAge).UnixMilli())
	if signal.Serial < oldest || signal.Serial > newest || signal.Serial <= s.heard[signal.From] {
		return errStale
	}
	s.heard[signal.From] = signal.Serial
	return nil
}

// call tells the coordinator to wake peers that this node begins to reach. Whether a signal arrives is known to nobody: the
// handshakes go on meanwhile.
func (n *Node) call(ctx context.Context, m *membership) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case agent := <-m.calls:
			if err := n.signal(ctx, m, agent); err != nil && ctx.Err() == nil {
				n.log.Debug("a peer could not be signalled", "agent", agent, "error", err)
			}
		}
	}
}

// signal sends one signal, where there is somebody to pass it on, to a peer that is said to listen.
func (n *Node) signal(ctx context.Context, m *membership, agent identity.AgentPublic) error {
	ctx, cancel := context.WithTimeout(ctx, signalLimit)
	defer cancel()
	select {
	case <-m.synced: // at the start a peer is called before the coordinator was reached
	case <-ctx.Done():
		return ctx.Err()
	}
	here := m.engine.underlay.Status()
	n.mu.Lock()
	p := m.book.peers[agent]
	if !m.link.connected || p == nil || !p.online {
		n.mu.Unlock()
		return nil
	}
	serial, ok := m.signals.serial(agent, n.now())
	n.mu.Unlock()
	if !ok {
		return nil
	}
	signed, err := identity.Signal{
		Network: m.book.network, To: agent, Serial: serial, Endpoints: selfAddrs(here), Relays: relayKeys(here, false),
	}.Sign(n.key)
	if err != nil {
		return err
	}
	return m.client.Load().Signal(ctx, signed.Raw())
}

// called takes a signal of a peer, and lets the data path reach out to it.
func (n *Node) called(m *membership, raw []byte) error {
	signal, err := identity.OpenSignal(raw, m.book.network)
	if err != nil {
		return err
	}
	here := m.engine.underlay.Status()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.member != m {
		return nil
	}
	now := n.now()
	p := m.book.peers[signal.From]
	if signal.To != m.book.self {
		return errForeign
	}
	if p == nil || m.book.isRevoked(p.certificate) || m.book.trust(signal.From, now) != localapi.TrustMutual {
		return errStranger
	}
	if err := m.signals.take(signal, now); err != nil {
		return err
	}
	relays := newRelayPlan(m.book.usableRelays(n.saved.AvoidJurisdictions, now), here).of(signal.Relays)
	endpoints := usableAddrs(identity.NetworkPrefix(m.book.network), signal.Endpoints)
	n.log.Debug("a peer calls", "agent", p.certificate.Name, "endpoints", fmt.Sprint(endpoints), "relays", len(relays))
	m.engine.overlay.Call(m.book.self, signal.From, endpoints, relays)
	return nil
}
