// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/pilot-protocol/pilot/underlay"
)

const (
	// lookForSleep is how often the clocks are compared, and sleepLimit by how much they may differ, or a look be late: less
	// than the silence after which sessions and NATs take a host for gone.
	lookForSleep = 10 * time.Second
	sleepLimit   = 5 * time.Second
	// settle is how long changes of this host's place are gathered before they are published: finding out where it is takes
	// a while, and each record is passed to all peers.
	settle = time.Second
)

// watchHost tells peers and the coordinator when this host has moved or slept.
func (n *Node) watchHost(ctx context.Context, m *membership) error {
	changes, err := n.system.WatchNetwork(ctx)
	if err != nil {
		n.log.Warn("changes of this host's addresses go unnoticed", "error", err)
	}
	look := time.NewTicker(lookForSleep)
	defer look.Stop()
	began := time.Now()
	clock := clocks{monotonic: 0, wall: n.now()}
	last := n.addresses()
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-changes:
			if !ok {
				changes = nil // it ended with ctx, or for good
				continue
			}
			n.reapply(m) // the underlay is told of the addresses with the rest
			now := n.addresses()
			if slices.Equal(now, last) {
				// A route alone may have changed: another way out has another address outside.
				m.engine.underlay.Refresh()
				continue
			}
			last = now
			n.log.Info("this host's addresses changed", "addresses", fmt.Sprint(now))
			m.engine.hostMoved()
		case <-look.C:
			now := clocks{monotonic: time.Since(began), wall: n.now()}
			if slept := clock.slept(now, lookForSleep); slept > 0 {
				n.log.Info("this host slept, or its clock was set", "for", slept.Round(time.Second))
				m.engine.hostMoved()
			}
			clock = now
		}
	}
}

// moved finds out anew whether the coordinator is there.
func (n *Node) moved(m *membership) {
	m.client.Load().CloseIdleConnections()
	n.redial(m)
	poke(m.renew)
}

// clocks are readings of the two clocks at one moment. The monotonic one stands still while a host sleeps, on most systems;
// while only this process stands still, both go on.
type clocks struct {
	monotonic time.Duration
	wall      time.Time
}

// slept returns how long this host or process stood still between two looks, that should be an interval apart; 0: it didn't.
func (c clocks) slept(now clocks, interval time.Duration) time.Duration {
	passed := now.monotonic - c.monotonic
	apart := (now.wall.Round(0).Sub(c.wall.Round(0)) - passed).Abs()
	if gap := max(apart, passed-interval); gap > sleepLimit {
		return gap
	}
	return 0
}

// redial opens the stream to the coordinator anew, without a pause.
func (n *Node) redial(m *membership) {
	poke(m.hurry)
	n.mu.Lock()
	hangUp := m.hangUp
	n.mu.Unlock()
	if hangUp != nil {
		hangUp()
	}
}

// watchMoves acts on this host's moves.
func (n *Node) watchMoves(ctx context.Context, m *membership) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.seat.moved:
			n.moved(m)
		}
	}
}

// watchPlace follows what the underlay finds out: where this node is reached, and over which relays.
func (n *Node) watchPlace(ctx context.Context, m *membership) error {
	// That something doesn't work is known some time after a change only, and is no change.
	again := time.NewTimer(bindLimit + settle)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-again.C:
			n.reapply(m)
			continue
		case <-m.seat.place:
		}
		n.reapply(m) // sessions are told at once
		again.Reset(bindLimit + settle)
		if !pause(ctx, settle) {
			return nil
		}
		if here := m.engine.underlay.Status(); !n.published(m, here) {
			n.log.Info("where this node is reached changed", "endpoints", fmt.Sprint(selfAddrs(here)), "home", n.relayName(m, here.Home))
			poke(m.republish)
		}
	}
}

// hearGone passes on what relays say of peers that are not there.
func hearGone(ctx context.Context, m *membership) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case p := <-m.engine.underlay.Gone():
			m.engine.overlay.Gone(p)
		}
	}
}

// published reports whether the coordinator knows where this node is.
func (n *Node) published(m *membership, here underlay.Status) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Equal(m.told.Endpoints, selfAddrs(here)) && slices.Equal(m.told.Relays, relayKeys(here, true))
}

func (n *Node) relayName(m *membership, id uint32) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return m.book.relayName(id)
}
