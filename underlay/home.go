// SPDX-License-Identifier: Apache-2.0

package underlay

import "time"

// A home relay is where others find this host. To move costs a new record and a new connection for all who talk with it, so
// it stays while it works, unless another one is much nearer.
const (
	homeFactor   = 2                     // a nearer relay's round trip is at most the half ...
	homeMargin   = 10 * time.Millisecond // ... and this much shorter
	homeStay     = 5 * time.Minute       // no move before, as long as it works
	homePatience = 2 * time.Second       // without a connection, before it counts as dead
)

// candidate is a relay that could be home.
type candidate struct {
	id        uint32
	rtt       time.Duration // 0: not known
	connected bool
	failed    bool // it does not work now
}

// home is the choice of the home relay.
type home struct {
	id    uint32 // 0: none
	since time.Time
	blind bool // no distance was known when it was chosen
}

// choose returns the home relay for now. Of candidates that are equal the first is taken.
func (h home) choose(now time.Time, candidates []candidate) home {
	var best, current *candidate
	for i := range candidates {
		c := &candidates[i]
		if c.id == h.id {
			current = c
		}
		if !c.failed && (best == nil || c.before(best)) {
			best = c
		}
	}
	switch {
	case best == nil && current != nil:
		return h // no other is better
	case best == nil && len(candidates) > 0:
		return home{candidates[0].id, now, true} // somebody may find us there later
	case best == nil:
		return home{}
	case current == nil || current.failed:
		return home{best.id, now, best.rtt == 0}
	case (h.blind || now.Sub(h.since) >= homeStay) && current.rtt > 0 && best.rtt > 0 && best.rtt*homeFactor <= current.rtt &&
		current.rtt-best.rtt >= homeMargin:
		return home{best.id, now, false}
	}
	return h
}

// before tells which of two that work is the better home for one who has none: one whose distance is known, then the
// nearer, then one that is connected.
func (c *candidate) before(d *candidate) bool {
	switch {
	case (c.rtt == 0) != (d.rtt == 0):
		return c.rtt != 0
	case c.rtt != d.rtt:
		return c.rtt < d.rtt
	}
	return c.connected && !d.connected
}
