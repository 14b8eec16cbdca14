// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/underlay/stun"
)

// Gathering: which addresses others see, what translators do to them, how far the relays are. It happens when the node
// starts, when it moves, when there are other relays, when a relay sees it elsewhere than before, and now and then, since
// networks change behind one's back.

const (
	gatherInterval = 20 * time.Minute
	// gatherSoon is the pause after a round that came to nothing.
	gatherSoon = 30 * time.Second
	// askLimit bounds one question to a server, and resolveLimit a name's resolution.
	askLimit     = 1500 * time.Millisecond
	resolveLimit = 2 * time.Second
	// filterLimit bounds the wait for an answer that a filter may have dropped.
	filterLimit = 900 * time.Millisecond
	// leeway is how long farther relays are waited for, at least, when the first has answered.
	leeway = 150 * time.Millisecond
)

// findings are what a round of gathering found. They are immutable.
type findings struct {
	v4, v6 family
}

// family is what was found for one address family.
type family struct {
	answers   []stun.Reply // one of each port that answered
	mapping   stun.Behaviour
	filtering stun.Behaviour
	asked     int // servers
}

// reflexive is where servers see this host; zero: none answered.
func (f *family) reflexive() netip.AddrPort {
	if len(f.answers) == 0 {
		return netip.AddrPort{}
	}
	return f.answers[0].Mapped
}

// nat is what there is to say of both families: of IPv4, where translators are, if that works.
func (f *findings) nat() NAT {
	best := &f.v4
	if len(best.answers) == 0 {
		best = &f.v6
	}
	return NAT{Mapping: best.mapping, Filtering: best.filtering}
}

// target is a relay's UDP port.
type target struct {
	relay uint32
	at    netip.AddrPort
}

// gather keeps the findings fresh until ctx ends.
func (u *Underlay) gather(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-u.regather:
		case <-timer.C:
		}
		s := u.state.Load()
		if s.Key.IsZero() || len(s.Relays) == 0 {
			timer.Reset(gatherInterval) // there is nobody to ask; Set says when there is
			continue
		}
		f := u.survey(ctx, s, u.relays.measure, u.relays.settled)
		if ctx.Err() != nil {
			return
		}
		u.found.Store(f)
		u.publish()
		timer.Reset(gatherInterval)
		if f.v4.answers == nil && f.v6.answers == nil {
			timer.Reset(gatherSoon)
		}
	}
}

// survey asks all relays. It tells each relay's round trip as it is known (0: no answer), and when no more is to come.
func (u *Underlay) survey(ctx context.Context, s *State, measured func(uint32, time.Duration), settled func()) *findings {
	targets := u.targets(ctx, s)
	var f findings
	var mu sync.Mutex
	rtts := map[uint32]time.Duration{}
	var early *time.Timer // what is farther than twice the nearest need not be waited for
	var group sync.WaitGroup
	for _, t := range targets {
		fam := f.of(t.at.Addr())
		fam.asked++
		group.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, askLimit)
			defer cancel()
			r, err := u.stun.Ask(ctx, t.at)
			if err != nil {
				u.log.Debug("no answer by STUN", "server", t.at, "error", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			fam.answers = append(fam.answers, r)
			if old := rtts[t.relay]; old == 0 || r.RTT < old {
				rtts[t.relay] = r.RTT
				measured(t.relay, r.RTT)
			}
			if early == nil {
				early = time.AfterFunc(max(leeway, 2*r.RTT), settled)
			}
		})
	}
	group.Wait()
	if early != nil {
		early.Stop()
	}
	for _, t := range targets {
		if rtts[t.relay] == 0 {
			measured(t.relay, 0)
		}
	}
	settled()
	for _, fam := range []*family{&f.v4, &f.v6} {
		group.Go(func() { u.classify(ctx, s, fam) })
	}
	group.Wait()
	return &f
}

func (f *findings) of(a netip.Addr) *family {
	if a.Is4() {
		return &f.v4
	}
	return &f.v6
}

// classify finds out how translators and filters behave for one family: it compares what several ports see, and asks one
// server to answer from another port than the one that was asked.
func (u *Underlay) classify(ctx context.Context, s *State, fam *family) {
	if len(fam.answers) == 0 {
		return
	}
	slices.SortFunc(fam.answers, func(a, b stun.Reply) int { return cmp.Compare(a.RTT, b.RTT) })
	near := fam.answers[0]
	var group sync.WaitGroup
	var second *stun.Reply
	var tried, came bool
	if near.OtherPort != 0 {
		other := netip.AddrPortFrom(near.Server.Addr(), near.OtherPort)
		// The filter first: a question to the other port would open it.
		tried = true
		wait, cancel := context.WithTimeout(ctx, filterLimit)
		_, err := u.stun.AskOtherPort(wait, near.Server)
		cancel()
		came = err == nil
		group.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, askLimit)
			defer cancel()
			if r, err := u.stun.Ask(ctx, other); err == nil {
				second = &r
			}
		})
	}
	group.Wait()
	if second == nil && !came {
		tried = false // that port is not reachable for anybody
	} else if second != nil {
		fam.answers = append(fam.answers, *second)
	}
	var own []netip.AddrPort
	for _, a := range s.Hosts {
		own = append(own, netip.AddrPortFrom(a.Unmap(), u.port))
	}
	var seen []stun.Observation
	for _, r := range fam.answers {
		seen = append(seen, stun.Observation{Server: r.Server, Mapped: r.Mapped})
	}
	fam.mapping = stun.Mapping(own, seen)
	fam.filtering = stun.Filtering(tried, came, fam.mapping)
}

// targets resolves the relays' names: one address of each relay and family that this host has an address of.
func (u *Underlay) targets(ctx context.Context, s *State) (list []target) {
	has4, has6 := u.v4 != nil, u.v6 != nil
	if len(s.Hosts) > 0 {
		is4 := func(a netip.Addr) bool { return a.Unmap().Is4() }
		has4 = has4 && slices.ContainsFunc(s.Hosts, is4)
		has6 = has6 && slices.ContainsFunc(s.Hosts, func(a netip.Addr) bool { return !is4(a) })
	}
	relays := s.Relays
	ctx, cancel := context.WithTimeout(ctx, resolveLimit)
	defer cancel()
	found := make([][]target, min(len(relays), maxRelays))
	var group sync.WaitGroup
	for i := range found {
		if relays[i].UDP != 0 {
			group.Go(func() { found[i] = u.targetsOf(ctx, &relays[i], has4, has6) })
		}
	}
	group.Wait()
	for _, ts := range found {
		list = append(list, ts...)
	}
	return list
}

func (u *Underlay) targetsOf(ctx context.Context, st *identity.RelayStatement, want4, want6 bool) (list []target) {
	add := func(a netip.Addr) {
		a = a.Unmap()
		want := &want6
		if a.Is4() {
			want = &want4
		}
		if *want {
			*want = false
			list = append(list, target{st.ID(), netip.AddrPortFrom(a, st.UDP)})
		}
	}
	for _, text := range st.Addresses {
		host, _, err := net.SplitHostPort(text)
		if err != nil {
			continue
		}
		if a, err := netip.ParseAddr(host); err == nil {
			add(a)
			continue
		}
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		if err != nil {
			u.log.Debug("a relay's name is not known here", "error", err)
		}
		for _, a := range addrs {
			add(a)
		}
	}
	return list
}
