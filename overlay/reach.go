// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"crypto/rand"
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"github.com/pilot-protocol/pilot/overlay/paths"
	"github.com/pilot-protocol/pilot/underlay"
)

// How a link reaches its peer: package paths decides, here is what it is told and what is done then.

const (
	// maxFans and maxSprays are for how many peers at a time holes are punched with many ports, as the hard and as the easy
	// side.
	maxFans   = 2
	maxSprays = 2
	// maxSources is how many may say where a peer is: the coordinator, a signal, the peer itself.
	maxSources = 3
)

// said is what one of them said, and when.
type said struct {
	at         time.Duration
	candidates []netip.AddrPort
	relays     []uint32
	nat        paths.NAT
}

// Sources of what is said about a peer.
const (
	saidInRecord = iota // by its record, which the coordinator passed on
	saidInSignal
	saidInSession
)

func randomID() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.BigEndian.Uint64(b[:])
}

// whereLocked lists where the peer may be: what was said last comes first. Of the addresses only those that are usable
// count, and none of ours.
func (o *Overlay) whereLocked(l *link) (candidates []netip.AddrPort, relays []uint32) {
	snap := o.snap.Load()
	if _, here := snap.locals[l.addr.As16()]; here {
		return snap.self, nil // two agents of this node
	}
	sources := l.said
	slices.SortStableFunc(sources[:], func(a, b said) int { return int(min(max(b.at-a.at, -1), 1)) })
	for _, s := range sources {
		for _, c := range s.candidates {
			c = netip.AddrPortFrom(c.Addr().Unmap(), c.Port())
			if len(candidates) < paths.MaxCandidates && paths.Usable(c, snap.prefix) && !slices.Contains(candidates, c) && !slices.Contains(snap.self, c) {
				candidates = append(candidates, c)
			}
		}
		for _, r := range s.relays {
			if len(relays) < paths.MaxRelays && r != 0 && !slices.Contains(relays, r) {
				relays = append(relays, r)
			}
		}
	}
	return candidates, relays
}

// carrier is the address by which relays know the peer's node.
func (l *link) carrier(snap *snapshot) netip.Addr {
	if p := snap.peers[l.remote]; p != nil && p.Carrier.IsValid() {
		return p.Carrier
	}
	return l.addr
}

// learnLocked tells the link's paths what is known.
func (o *Overlay) learnLocked(l *link, now moment) {
	snap := o.snap.Load()
	candidates, relays := o.whereLocked(l)
	l.paths.Learn(now.at, paths.Facts{
		Peer: l.carrier(snap), Candidates: candidates, Relays: relays, Spare: snap.selfRelays, NAT: snap.nat, PeerNAT: l.said[saidInSession].nat,
	})
}

// recordLocked takes what the State says about where the peer is.
func (l *link) recordLocked(p *Peer, now moment) {
	if p == nil {
		return
	}
	s := &l.said[saidInRecord]
	if s.at == 0 || !slices.Equal(s.candidates, p.Candidates) || !slices.Equal(s.relays, p.Relays) {
		*s = said{at: now.at, candidates: p.Candidates, relays: p.Relays}
	}
}

// waysLocked lists the paths that a first message takes. A session that answers is renewed along its own path. Otherwise it
// goes everywhere at once; but every other time over relays alone, if there are any: a peer answers one copy of a message,
// and if that came along a path that works in one direction only, its answer is lost.
func (o *Overlay) waysLocked(l *link) (ways []underlay.Path) {
	add := func(p underlay.Path) {
		if !slices.ContainsFunc(ways, func(w underlay.Path) bool { return paths.Same(w, p) }) {
			ways = append(ways, p)
		}
	}
	if s := l.current.Load(); s != nil {
		add(*s.path.Load())
		if l.unanswered.Load() == 0 && l.refresh == 0 && l.attempt.tries < renewTries {
			return ways
		}
	} else if last := l.last.path; last.Remote.IsValid() && last.Socket == 0 {
		add(underlay.Path{Remote: last.Remote, Relay: last.Relay})
	}
	candidates, relays := o.whereLocked(l)
	if len(relays) == 0 {
		relays = o.snap.Load().selfRelays
	}
	if len(relays) > 0 && l.attempt.tries%2 == 1 {
		ways = slices.DeleteFunc(ways, func(p underlay.Path) bool { return p.Relay == 0 })
		candidates = nil
	}
	for _, c := range candidates {
		add(underlay.Path{Remote: c})
	}
	for _, r := range relays[:min(len(relays), paths.MaxRelays)] {
		add(underlay.Path{Remote: netip.AddrPortFrom(l.carrier(o.snap.Load()), 0), Relay: r})
	}
	return ways
}

// actLocked does what the link's paths want done now, and reports whether something went along the path in use.
func (o *Overlay) actLocked(l *link, now moment) (sent bool) {
	l.paths.Used(time.Duration(l.lastData.Load()))
	for _, a := range l.paths.Act(now.at, nil) {
		s := l.current.Load()
		switch {
		case a.Kind == paths.Unfan:
			o.control.unfan = true
			o.wakes.signal()
		case s == nil:
		case a.Kind == paths.Use:
			o.useLocked(l, a.Path, now)
		case a.Kind == paths.Ping:
			o.writeLocked(s, &a.Path, pingMessage(a.ID), a.InUse, now)
			sent = sent || a.InUse
		case a.Kind == paths.Tell:
			o.writeLocked(s, s.path.Load(), o.snap.Load().candidatesMessage(), false, now)
			sent = true
		case a.Kind == paths.Call:
			if !l.attempt.active && now.at >= l.attempt.next && !o.offlineLocked(l) {
				o.beginLocked(l, now)
			}
		case a.Kind == paths.Fan:
			o.control.fans = append(o.control.fans, fanWish{l, a})
			o.wakes.signal()
		case a.Kind == paths.Punch:
			if at, ok := o.snap.Load().public(); ok {
				o.writeLocked(s, s.path.Load(), punchMessage(at), false, now)
			}
		}
	}
	if p, ok := l.paths.Current(); ok {
		o.useLocked(l, p, now) // its local address may have changed
	}
	if next := l.paths.Next(); next != 0 {
		o.scheduleLocked(l, max(next, now.at+time.Millisecond))
	}
	if l.unanswered.Load() != 0 {
		o.scheduleLocked(l, now.at+lookEvery)
	}
	// The next packet wakes us, unless packets come so often that we look anyway.
	l.idle.Store(now.at-time.Duration(l.lastData.Load()) >= lookEvery)
	return sent
}

// useLocked makes the sessions of a link use a path.
func (o *Overlay) useLocked(l *link, p underlay.Path, now moment) {
	for _, s := range []*session{l.previous, l.pending, l.current.Load()} {
		if s == nil {
			continue
		}
		old := *s.path.Load()
		if old == p {
			continue
		}
		s.path.Store(&p)
		if s == l.current.Load() && !paths.Same(old, p) {
			s.heard.Store(nil)
			o.searchLocked(l, s, now) // other paths carry other sizes
			o.events.emit(PathChanged{Local: l.local, Agent: l.remote, Addr: l.addr, Path: p})
		}
	}
}

// fanWish is sockets that a link wants.
type fanWish struct {
	link   *link
	action paths.Action
}

// serveFans opens and closes sockets to punch with. It is only called by controlLoop, so one thing is done after the other; the
// lock is not held meanwhile, since there are hundreds of sockets.
func (o *Overlay) serveFans() {
	for {
		wish, unfan, ok := o.nextFan()
		switch {
		case !ok:
			return
		case unfan != nil:
			o.under.Unfan(*unfan)
			continue
		}
		fan, err := o.under.Fan(wish.action.Path.Remote, wish.action.N)
		if err != nil {
			o.log.Debug("cannot open sockets for hole punching", "agent", wish.link.remote, "error", err)
			continue
		}
		o.fanned(wish.link, fan)
	}
}

// nextFan returns what is to be done next: a link's wish, or which sockets to keep; false if that is nothing.
func (o *Overlay) nextFan() (wish fanWish, keep *[]underlay.Path, ok bool) {
	o.mu.Lock()
	defer o.unlock()
	if o.control.unfan {
		o.control.unfan = false
		keep = new([]underlay.Path)
		for _, r := range o.snap.Load().routes {
			*keep = append(*keep, r.link.paths.Sockets()...)
		}
		return wish, keep, true
	}
	for len(o.control.fans) > 0 {
		wish, o.control.fans = o.control.fans[0], o.control.fans[1:]
		fans := 0
		for _, r := range o.snap.Load().routes {
			if r.link != wish.link && r.link.paths.Fanning() {
				fans++
			}
		}
		if fans < maxFans && wish.link.current.Load() != nil {
			return wish, nil, true
		}
	}
	o.control.fans = nil
	return wish, nil, false
}

// fanned gives a link the sockets that it wished for. If it does not want them any more they are closed.
func (o *Overlay) fanned(l *link, fan []underlay.Path) {
	now := o.now()
	o.mu.Lock()
	defer o.unlock()
	l.paths.Fanned(fan)
	o.control.unfan = o.control.unfan || !l.paths.Fanning()
	o.actLocked(l, now)
}

// toldLocked takes a candidates message.
func (o *Overlay) toldLocked(l *link, body []byte, now moment) {
	told, ok := parseCandidates(body)
	if !ok {
		o.counters.drop(DropMessage)
		return
	}
	told.at = now.at
	l.said[saidInSession] = told
	o.learnLocked(l, now)
	l.paths.Told(now.at)
	o.actLocked(l, now)
}

// punchedLocked takes the peer's wish to punch with many ports.
func (o *Overlay) punchedLocked(l *link, addr netip.Addr, now moment) {
	sprays := 0
	for _, r := range o.snap.Load().routes {
		if r.link.paths.Punching() {
			sprays++
		}
	}
	if sprays >= maxSprays {
		return // it asks again
	}
	l.paths.Punch(now.at, addr)
	o.actLocked(l, now)
}

// public returns our own address on the internet that a translator gave us.
func (s *snapshot) public() (netip.Addr, bool) {
	for _, a := range s.self {
		if paths.Public(a.Addr()) {
			return a.Addr(), true
		}
	}
	return netip.Addr{}, false
}

// candidatesMessage tells where we are.
func (s *snapshot) candidatesMessage() []byte {
	self, relays := s.self[:min(len(s.self), paths.MaxCandidates)], s.selfRelays[:min(len(s.selfRelays), paths.MaxRelays)]
	b := []byte{messageCandidates, byte(len(self)), byte(len(relays))}
	for _, a := range self {
		b = appendAddrPort(b, a)
	}
	for _, r := range relays {
		b = binary.BigEndian.AppendUint32(b, r)
	}
	return append(b, byte(s.nat))
}

func appendAddrPort(b []byte, a netip.AddrPort) []byte {
	x := a.Addr().As16()
	return binary.BigEndian.AppendUint16(append(b, x[:]...), a.Port())
}

func addrPortOf(b []byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b)).Unmap(), binary.BigEndian.Uint16(b[16:]))
}

// parseCandidates reads a candidates message. What is more than we take is left out; a sender with a NAT that we don't know
// has one that nobody knows.
func parseCandidates(b []byte) (t said, ok bool) {
	if len(b) < 3 || b[0] != messageCandidates {
		return t, false
	}
	n, m := int(b[1]), int(b[2])
	b = b[3:]
	if len(b) < n*addrPortSize+m*4 {
		return t, false
	}
	for i := range n {
		if i < paths.MaxCandidates {
			t.candidates = append(t.candidates, addrPortOf(b[i*addrPortSize:]))
		}
	}
	b = b[n*addrPortSize:]
	for i := range m {
		if i < paths.MaxRelays {
			t.relays = append(t.relays, binary.BigEndian.Uint32(b[i*4:]))
		}
	}
	if b = b[m*4:]; len(b) > 0 && b[0] <= byte(paths.NATBlocked) {
		t.nat = paths.NAT(b[0])
	}
	return t, true
}

// heard is called by the loops when the newest record of a session came along another path than the one in use: control is
// told once. It is apart from follow so that only a path that changed is allocated.
func (o *Overlay) heard(s *session, path underlay.Path, at time.Duration) {
	select {
	case o.messages <- message{session: s, path: path, at: at}:
		s.heard.Store(&path)
	default: // with one of the next records
	}
}
