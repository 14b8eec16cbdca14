// SPDX-License-Identifier: Apache-2.0

package paths_test

import (
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/overlay/paths/simnet"
)

const trip = 10 * time.Millisecond

// Each place with each: direct wherever at most one side has another port for each destination, otherwise over the relay.
// It begins over the relay, and nothing is lost on the way to the better path.
func TestMatrix(t *testing.T) {
	for _, pa := range places() {
		for _, pb := range places() {
			t.Run(pa.name+", "+pb.name, func(t *testing.T) {
				inTime(t, func(t *testing.T) {
					n := simnet.New(trip)
					n.Relay(1, 3*trip)
					a, b := pa.settle(t, n, "a", 0, 1), pb.settle(t, n, "b", 1, 1)
					stop := overRelay(a, b, 1)
					defer stop()
					start := time.Now()
					talk(a, b, time.Second)
					easy := !pa.dead && !pb.dead && !(pa.hard && pb.hard) && !(pa.hard && filters(pb) || pb.hard && filters(pa))
					if quick := a.inUse().Relay == 0 && b.inUse().Relay == 0; quick != easy {
						t.Errorf("after a second: %v, %v", a.inUse(), b.inUse())
					}
					talk(a, b, 130*time.Second)
					direct := !pa.dead && !pb.dead && !(pa.hard && pb.hard)
					if got := a.inUse().Relay == 0 && b.inUse().Relay == 0; got != direct {
						t.Errorf("direct: %v, %v", a.inUse(), b.inUse())
					}
					for _, e := range []*end{a, b} {
						if gap := e.longestGap(start); gap > 200*time.Millisecond {
							t.Errorf("%s heard nothing for %v", e.name, gap)
						}
						e.mu.Lock()
						if len(e.changes) > 4 {
							t.Errorf("%s went to and fro: %v", e.name, e.changes)
						}
						if why := e.set.Why(e.now()); direct != (why == "") {
							t.Errorf("%s: %q", e.name, why)
						}
						e.mu.Unlock()
					}
					time.Sleep(10 * time.Second)
					if n := a.host.Sockets() + b.host.Sockets(); n > 1 {
						t.Errorf("%d sockets are open", n)
					}
				})
			})
		}
	}
}

// filters reports whether a place lets in only the port that was sent to.
func filters(p place) bool { return p.name != "public" && p.name != "EIM-EIF" && p.name != "EIM-ADF" }
