// SPDX-License-Identifier: Apache-2.0

package paths_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/overlay/paths"
	"github.com/pilot-protocol/pilot/overlay/paths/simnet"
	"github.com/pilot-protocol/pilot/underlay"
)

// road is a path of a world in which only pings are answered: how long the answer takes, and whether it comes.
type road struct {
	path underlay.Path
	trip func(now time.Duration) (time.Duration, bool)
}

// ride drives a Set along roads by a clock of its own, with data flowing all the time, and notes which path it uses when.
type ride struct {
	t       *testing.T
	set     *paths.Set
	now     time.Duration
	roads   []road
	answers []answer // by time
	changes []change
}

type answer struct {
	at time.Duration
	id uint64
	p  underlay.Path
}

type change struct {
	at time.Duration
	p  underlay.Path
}

func directly(n byte) underlay.Path {
	return underlay.Path{Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, n}), simnet.Port)}
}

func overRelayNo(n uint32) underlay.Path {
	return underlay.Path{Relay: n, Remote: netip.AddrPortFrom(overlayOf("x"), 0)}
}

// newRide begins a session over the first road that is a relay.
func newRide(t *testing.T, r *rand.Rand, roads ...road) *ride {
	d := &ride{t: t, set: paths.New(r.Uint64), now: time.Hour, roads: roads}
	f := paths.Facts{Peer: overlayOf("x"), NAT: paths.NATNone, PeerNAT: paths.NATNone}
	for _, r := range roads {
		if r.path.Relay == 0 {
			f.Candidates = append(f.Candidates, r.path.Remote)
		} else {
			f.Relays = append(f.Relays, r.path.Relay)
		}
	}
	d.set.Learn(d.now, f)
	d.set.Up(d.now, overRelayNo(f.Relays[0]), 40*time.Millisecond)
	d.act()
	return d
}

func (d *ride) act() {
	for _, a := range d.set.Act(d.now, nil) {
		switch a.Kind {
		case paths.Use:
			d.use(a.Path)
		case paths.Ping:
			for _, r := range d.roads {
				if trip, ok := r.trip(d.now); ok && paths.Same(r.path, a.Path) {
					d.answers = append(d.answers, answer{d.now + trip, a.ID, r.path})
				}
			}
			slices.SortStableFunc(d.answers, func(a, b answer) int { return int(a.at - b.at) })
		}
	}
}

// use checks each change: as long as any path is proved the new one is.
func (d *ride) use(p underlay.Path) {
	d.changes = append(d.changes, change{d.now, p})
	all := d.set.Status()
	if !all[0].InUse || !paths.Same(all[0].Path, p) {
		d.t.Errorf("at %v it uses %v, and says %+v", d.now, p, all[0])
	}
	for _, s := range all[1:] {
		if s.State == paths.Proved && all[0].State != paths.Proved && s.Path.Relay != 0 { // a direct one may be held down
			d.t.Errorf("at %v it moves to %v, which is %v, while %v is proved", d.now, p, all[0].State, s.Path)
		}
	}
}

// run lets time pass.
func (d *ride) run(long time.Duration) {
	const each = 100 * time.Millisecond // a packet
	for end, data := d.now+long, d.now; d.now < end; {
		next := min(end, data)
		if at := d.set.Next(); at != 0 {
			next = min(next, max(at, d.now+time.Microsecond))
		}
		if len(d.answers) > 0 {
			next = min(next, max(d.answers[0].at, d.now))
		}
		d.now = next
		if len(d.answers) > 0 && d.answers[0].at <= d.now {
			a := d.answers[0]
			d.answers = d.answers[1:]
			d.set.Pong(d.now, a.id, a.p)
		}
		if data <= d.now {
			d.set.Used(d.now)
			data += each
		}
		d.act()
	}
}

func (d *ride) inUse() underlay.Path {
	p, _ := d.set.Current()
	return p
}

// since is the changes after a moment.
func (d *ride) since(at time.Duration) []change {
	i, _ := slices.BinarySearchFunc(d.changes, at, func(c change, at time.Duration) int { return int(c.at - at) })
	return d.changes[i:]
}

func steady(trip time.Duration) func(time.Duration) (time.Duration, bool) {
	return func(time.Duration) (time.Duration, bool) { return trip, true }
}

// jittery takes a round trip that varies by part of itself, and loses some.
func jittery(r *rand.Rand, trip time.Duration, part, loss float64) func(time.Duration) (time.Duration, bool) {
	return func(time.Duration) (time.Duration, bool) {
		return time.Duration(float64(trip) * (1 + part*(2*r.Float64()-1))), r.Float64() >= loss
	}
}

// seeds runs a property with many sources of chance.
func seeds(t *testing.T, n uint64, f func(t *testing.T, r *rand.Rand)) {
	t.Helper()
	for seed := range n {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { f(t, rand.New(rand.NewPCG(seed, 9))) })
	}
}

// Two direct paths whose round trips vary by less than what makes a change worth it: once on one of them it stays there.
func TestJitterMovesNothing(t *testing.T) {
	seeds(t, 30, func(t *testing.T, r *rand.Rand) {
		trip := time.Duration(1+r.IntN(200)) * time.Millisecond
		d := newRide(t, r, road{directly(1), jittery(r, trip, 0.1, 0)}, road{directly(2), jittery(r, trip, 0.1, 0)},
			road{overRelayNo(1), jittery(r, trip*3, 0.1, 0)})
		d.run(5 * time.Second)
		settled := d.now
		d.run(20 * time.Minute)
		if got := d.since(settled); len(got) > 0 || d.inUse().Relay != 0 {
			t.Errorf("round trip %v: it went to and fro: %v", trip, got)
		}
	})
}

// However bad the paths are it does not flap: in any weather there are few changes a minute, and most packets go a direct way.
func TestBadWeatherMovesLittle(t *testing.T) {
	seeds(t, 30, func(t *testing.T, r *rand.Rand) {
		loss := 0.2 * r.Float64()
		d := newRide(t, r, road{directly(1), jittery(r, 30*time.Millisecond, 0.9, loss)}, road{directly(2), jittery(r, 30*time.Millisecond, 0.9, loss)},
			road{overRelayNo(1), jittery(r, 90*time.Millisecond, 0.5, loss)})
		d.run(5 * time.Second)
		settled := d.now
		const minutes = 30
		d.run(minutes * time.Minute)
		if got := d.since(settled); len(got) > 4*minutes {
			t.Errorf("%d changes in %d minutes at a loss of %.0f %%", len(got), minutes, 100*loss)
		}
	})
}

// A relay that says again and again that the peer is gone, while it is there, makes us ask somewhat more often, and nothing else.
func TestLyingRelay(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	pings := 0
	d := newRide(t, r, road{overRelayNo(1), func(time.Duration) (time.Duration, bool) {
		pings++
		return 40 * time.Millisecond, true
	}}, road{overRelayNo(2), steady(80 * time.Millisecond)})
	d.run(5 * time.Second)
	pings = 0
	settled := d.now
	for range 60 * 100 { // a minute
		d.set.Gone(d.now, overRelayNo(1))
		d.set.Gone(d.now, overRelayNo(2)) // not in use
		d.set.Gone(d.now, directly(1))    // unheard of
		d.run(10 * time.Millisecond)
	}
	if got := d.since(settled); len(got) != 0 || pings > 60*3 {
		t.Errorf("%d pings in a minute, and the changes %v", pings, got)
	}
}

// A path that is faster by a fifth and by 2 ms is taken, and one that is faster by less is not.
func TestFasterPathIsTaken(t *testing.T) {
	for _, tt := range []struct {
		used, other time.Duration
		taken       bool
	}{
		{100 * time.Millisecond, 79 * time.Millisecond, true}, {100 * time.Millisecond, 85 * time.Millisecond, false},
		{5 * time.Millisecond, 2 * time.Millisecond, true}, {2500 * time.Microsecond, time.Millisecond, false},
	} {
		r := rand.New(rand.NewPCG(1, 1))
		slow := 10 * time.Second
		d := newRide(t, r, road{directly(1), steady(tt.used)}, road{directly(2), func(now time.Duration) (time.Duration, bool) {
			if now < time.Hour+slow {
				return 2 * tt.used, true
			}
			return tt.other, true
		}}, road{overRelayNo(1), steady(time.Second / 2)})
		d.run(slow - time.Second)
		if !paths.Same(d.inUse(), directly(1)) {
			t.Fatalf("it begins with %v", d.inUse())
		}
		d.run(5 * time.Minute)
		if taken := paths.Same(d.inUse(), directly(2)); taken != tt.taken {
			t.Errorf("%v instead of %v: taken %v", tt.other, tt.used, taken)
		}
		if n := len(d.changes); n > 3 {
			t.Errorf("%d changes: %v", n, d.changes)
		}
	}
}

// A direct path that comes and goes is not used each time that it is there: after two deaths in a minute it must hold for
// longer. Once it stays it is used again.
func TestHoldDown(t *testing.T) {
	seeds(t, 20, func(t *testing.T, r *rand.Rand) {
		upFor := time.Duration(2000+r.IntN(6000)) * time.Millisecond
		downFor := time.Duration(1000+r.IntN(10000)) * time.Millisecond
		const unrest = time.Hour
		d := newRide(t, r, road{directly(1), func(now time.Duration) (time.Duration, bool) {
			now -= time.Hour
			return 20 * time.Millisecond, now > unrest || now%(upFor+downFor) < upFor
		}}, road{overRelayNo(1), steady(60 * time.Millisecond)})
		d.run(unrest)
		var used, died []time.Duration
		for _, c := range d.changes[1:] {
			if c.p.Relay == 0 {
				used = append(used, c.at)
			} else {
				died = append(died, c.at)
			}
		}
		if len(used) == 0 || len(used) > 40 {
			t.Errorf("up for %v, down for %v: it was used %d times in an hour", upFor, downFor, len(used))
		}
		for i := 2; i < len(used); i++ {
			if died[i-1]-died[i-2] < time.Minute && used[i]-died[i-1] < 10*time.Second {
				t.Errorf("it died at %v and %v, and was used again at %v", died[i-2], died[i-1], used[i])
			}
		}
		if why := d.set.Why(d.now); d.inUse().Relay == 0 || why == "" {
			t.Errorf("it uses %v, why %q", d.inUse(), why)
		}
		d.run(6 * time.Minute) // the longest that it is held down is five
		if d.inUse().Relay != 0 {
			t.Errorf("it is good now, and not used: %+v", d.set.Status())
		}
	})
}

// Wherever the direct path breaks, in which direction, at which moment and how long it is: both ends are back on the relay
// within three seconds, nothing is silent for longer, and the direct path is used again when it is back.
func TestBackToTheRelay(t *testing.T) {
	broken := map[string]func(a, b netip.Addr) func(from, to netip.AddrPort) bool{
		"to b": func(a, _ netip.Addr) func(from, to netip.AddrPort) bool {
			return func(f, _ netip.AddrPort) bool { return f.Addr() == a }
		},
		"to a": func(_, b netip.Addr) func(from, to netip.AddrPort) bool {
			return func(f, _ netip.AddrPort) bool { return f.Addr() == b }
		},
		"both": func(_, _ netip.Addr) func(from, to netip.AddrPort) bool {
			return func(_, _ netip.AddrPort) bool { return true }
		},
		"large": nil, // half of what goes to b
	}
	for name, lose := range broken {
		for seed := range uint64(6) {
			t.Run(fmt.Sprint(name, " ", seed), func(t *testing.T) {
				inTime(t, func(t *testing.T) {
					r := rand.New(rand.NewPCG(seed, 3))
					trip := time.Duration(1+r.IntN(100)) * time.Millisecond
					n := simnet.New(trip)
					n.Relay(1, 2*trip)
					public := places()[0]
					a, b := public.settle(t, n, "a", 0, 1), public.settle(t, n, "b", 1, 1)
					defer overRelay(a, b, 1)()
					talk(a, b, 5*time.Second+time.Duration(r.IntN(2000))*time.Millisecond)
					if a.inUse().Relay != 0 || b.inUse().Relay != 0 {
						t.Fatalf("it is not direct: %v, %v", a.inUse(), b.inUse())
					}
					at := time.Now()
					if lose == nil {
						// A path that loses much of one direction is not to flap, whatever it does.
						from := a.self[0].Addr()
						n.Drop(func(f, _ netip.AddrPort) bool { return f.Addr() == from && r.IntN(2) == 0 })
						before := len(a.changes) + len(b.changes)
						talk(a, b, 5*time.Minute)
						if n := len(a.changes) + len(b.changes) - before; n > 20 {
							t.Errorf("%d changes in five minutes", n)
						}
						return
					}
					n.Drop(lose(a.self[0].Addr(), b.self[0].Addr()))
					talk(a, b, 3*time.Second)
					for _, e := range []*end{a, b} {
						if e.inUse().Relay == 0 {
							t.Errorf("%s still uses %v", e.name, e.inUse())
						}
					}
					talk(a, b, 20*time.Second)
					for _, e := range []*end{a, b} {
						if gap := e.longestGap(at); gap > 3*time.Second {
							t.Errorf("%s heard nothing for %v", e.name, gap)
						}
					}
					n.Drop(nil)
					talk(a, b, 40*time.Second) // it is tried each thirty at least
					if a.inUse().Relay != 0 || b.inUse().Relay != 0 {
						t.Errorf("it does not come back: %v, %v", a.inUse(), b.inUse())
					}
				})
			})
		}
	}
}
