// SPDX-License-Identifier: Apache-2.0

package paths_test

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/overlay/paths"
	"github.com/pilot-protocol/pilot/underlay"
)

// Where punching missed, the next request finds the easy side ready to take part again, also if it was under way for a shorter
// time than the one before; and no more often than once a minute.
func TestPunchingAgain(t *testing.T) {
	hardAt, easyAt := netip.MustParseAddrPort("203.0.113.5:4000"), netip.MustParseAddrPort("198.51.100.7:7745")
	over := underlay.Path{Relay: 1, Remote: netip.AddrPortFrom(overlayOf("x"), 0)}
	begin := func(f paths.Facts) *paths.Set {
		s := paths.New(rand.New(rand.NewPCG(1, 2)).Uint64)
		f.Peer, f.Relays = overlayOf("x"), []uint32{1}
		s.Learn(time.Second, f)
		s.Up(time.Second, over, 40*time.Millisecond)
		return s
	}
	hard := begin(paths.Facts{Candidates: []netip.AddrPort{easyAt}, NAT: paths.NATHard, PeerNAT: paths.NATEasy})
	easy := begin(paths.Facts{Candidates: []netip.AddrPort{hardAt}, NAT: paths.NATEasy, PeerNAT: paths.NATHard})

	// step lets a set do what it wants; its relay answers at once, and nobody else. It tells whether the peer was asked.
	step := func(s *paths.Set, now time.Duration) (asked bool) {
		s.Used(now)
		for range 3 { // what an answer leads to
			for _, a := range s.Act(now, nil) {
				switch {
				case a.Kind == paths.Ping && a.Path == over:
					s.Pong(now, a.ID, over)
				case a.Kind == paths.Fan:
					s.Fanned([]underlay.Path{{Remote: easyAt, Socket: 1}})
				case a.Kind == paths.Punch:
					asked = true
				}
			}
		}
		return asked
	}
	delays := []time.Duration{3 * time.Second, 0, time.Second, 0}
	var due, last time.Duration
	for now := time.Second; len(delays) > 0 && now < 10*time.Minute; now += 10 * time.Millisecond {
		if step(hard, now) {
			due = now + delays[0]
			delays = delays[1:]
		}
		step(easy, now)
		if due == 0 || now < due {
			continue
		}
		due = 0
		easy.Punch(now, hardAt.Addr())
		if !easy.Punching() {
			t.Errorf("the request at %v, %v after the one before, is ignored", now, now-last)
		}
		if last != 0 && now-last < time.Minute {
			t.Errorf("pings to many ports twice in %v", now-last)
		}
		last = now
	}
	if len(delays) > 0 {
		t.Errorf("%d attempts are missing", len(delays))
	}
}
