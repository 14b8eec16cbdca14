// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"hash/maphash"
	"net/netip"
	"time"

	"github.com/pilot-protocol/pilot/coordinator/api"
)

// pulse says when streams get their pings. All streams of one address get them at the same moment: a daemon has one for each of
// its agents, and shall wake once for all of them. Those of different addresses are spread over the interval. It doesn't change.
type pulse struct {
	began time.Time
	seed  maphash.Seed
}

func newPulse() *pulse { return &pulse{began: time.Now(), seed: maphash.MakeSeed()} }

// next is how long it is until the next moment of an address: more than 0, at most an interval.
func (p *pulse) next(addr netip.Addr) time.Duration {
	phase := time.Duration(maphash.Comparable(p.seed, addr) % uint64(api.PingInterval))
	return api.PingInterval - (time.Since(p.began)+phase)%api.PingInterval
}
