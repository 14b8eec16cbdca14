// SPDX-License-Identifier: Apache-2.0

package relayserver

import "sync/atomic"

// counters count what happens. Datagrams are counted whole, bytes as they come, with what stands before them.
type counters struct {
	connections, refused         atomic.Uint64
	datagrams, bytes, stun       atomic.Uint64
	unknown, limited, full, gone atomic.Uint64
	unsent, errors               atomic.Uint64
}

// Stats is what a relay has done since it began.
type Stats struct {
	Clients     int    // connected now
	Connections uint64 // that were welcomed
	Refused     uint64 // that were not
	Datagrams   uint64 // forwarded, or tried to
	Bytes       uint64
	STUN        uint64 // binding requests answered
	// Drops counts datagrams that were not forwarded, by reason.
	Drops map[string]uint64
}

// Stats returns the counters as they are now.
func (s *Server) Stats() Stats {
	c := &s.counts
	return Stats{
		Clients: s.table.count(), Connections: c.connections.Load(), Refused: c.refused.Load(),
		Datagrams: c.datagrams.Load(), Bytes: c.bytes.Load(), STUN: c.stun.Load(),
		Drops: map[string]uint64{
			"unknown": c.unknown.Load(), // of no client, or from where it is not
			"limit":   c.limited.Load(), // more than the client may send
			"queue":   c.full.Load(),    // more than the receiver's TLS connection takes
			"gone":    c.gone.Load(),    // to somebody who is not connected
			"send":    c.unsent.Load(),  // the system would not send
			"receive": c.errors.Load(),
		},
	}
}
