// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/pilot-protocol/pilot/noise"
	"github.com/pilot-protocol/pilot/overlay/parts"
	"github.com/pilot-protocol/pilot/overlay/paths"
	"github.com/pilot-protocol/pilot/overlay/pmtu"
	"github.com/pilot-protocol/pilot/underlay"
)

// How long a datagram may be is a matter of the path. Control searches for it with padded pings, by package pmtu, and tells
// the session; the loops make what they send fit. The first answer that the search gets is the handshake's.

const (
	// searchWhileUsed: a path is searched as long as a packet went either way within this time, or the session is so new.
	searchWhileUsed = 10 * time.Second
	// suspectAfter: when long datagrams were sent and nothing at all came back for so long, their size is asked about.
	suspectAfter = 300 * time.Millisecond
	// maxSearches is of how many paths of a link it is remembered what they carried.
	maxSearches = 8
	// maxProbes is how many pings of a search may be under way.
	maxProbes = 32

	// What a relay's header leaves of an IPv4 and of an IPv6 packet of 1500 bytes.
	relayedIPv4 = 1500 - 20 - 8 - relayHeader
	relayedIPv6 = 1500 - 40 - 8 - relayHeader
	relayHeader = 32
)

// sizes is a session's part for the loops.
type sizes struct {
	found   atomic.Pointer[found]           // what its path carries; only control stores
	long    atomic.Bool                     // datagrams of more than pmtu.Least were sent since control looked
	refused atomic.Int32                    // the shortest datagram that the host refused to send since control looked; 0: none
	packet  atomic.Uint32                   // of the last packet that was cut into parts
	whole   atomic.Pointer[parts.Assembler] // nil until the first part came
}

// found is what a search has found so far. The two belong together: what is known to pass while the search goes on is no
// reason to tell programs.
type found struct {
	limit   int  // length of the longest datagram that may be sent
	settled bool // nothing longer will pass: programs may be told
}

// sizeSearches is what control knows. It is guarded by Overlay.mu.
type sizeSearches struct {
	searches []pathSearch // the one of the path in use first
	probes   []sizeProbe  // under way, oldest first
}

// pathSearch is the search on one path.
type pathSearch struct {
	path   underlay.Path
	search *pmtu.Search
}

// sizeProbe is a padded ping.
type sizeProbe struct {
	id   uint64
	at   time.Duration
	path underlay.Path
	size int
}

// searchLocked returns the search on the session's path, which may be a new one, and tells the session its limit.
func (o *Overlay) searchLocked(l *link, s *session, now moment) *pmtu.Search {
	path := *s.path.Load()
	list := l.sizes.searches
	if i := slices.IndexFunc(list, func(p pathSearch) bool { return paths.Same(p.path, path) }); i > 0 {
		p := list[i]
		copy(list[1:], list[:i])
		list[0] = p
		o.restartLocked(l, now)
	} else if i < 0 {
		if len(list) >= maxSearches {
			list = list[:maxSearches-1]
		}
		l.sizes.searches = slices.Insert(list, 0, pathSearch{path, newSearch(o.mtu, path)})
		o.scheduleLocked(l, now.at)
	}
	search := l.sizes.searches[0].search
	tellLimit(s, search)
	return search
}

// newSearch begins to search a path.
func newSearch(mtu int, path underlay.Path) *pmtu.Search {
	if path.Relay != 0 {
		return pmtu.New(mtu+noise.Overhead, relayedIPv4, relayedIPv6)
	}
	return pmtu.New(mtu + noise.Overhead)
}

// restartLocked says that what was found of the path in use, or used last, counts no more: it may be another one by now.
// Answers to probes that are under way count no more either.
func (o *Overlay) restartLocked(l *link, now moment) {
	if len(l.sizes.searches) == 0 {
		return
	}
	p := l.sizes.searches[0]
	p.search.Restart()
	l.sizes.probes = slices.DeleteFunc(l.sizes.probes, func(probe sizeProbe) bool { return paths.Same(probe.path, p.path) })
	if s := l.current.Load(); s != nil {
		tellLimit(s, p.search)
		o.scheduleLocked(l, now.at)
	}
}

// carriedLocked says that a session's handshake went along a path: its datagrams were as good as probes.
func (o *Overlay) carriedLocked(l *link, s *session, handshake underlay.Path, now moment) {
	search := o.searchLocked(l, s, now)
	if paths.Same(handshake, *s.path.Load()) {
		search.Answered(s.noise.Carried(), s.rtt, now.at)
		tellLimit(s, search)
	}
}

func tellLimit(s *session, search *pmtu.Search) {
	f := found{search.Limit(), search.Settled()}
	if old := s.sizes.found.Load(); old == nil || *old != f {
		s.sizes.found.Store(&f)
	}
}

// sizesLocked goes on with the search on the path in use.
func (o *Overlay) sizesLocked(l *link, now moment) {
	s := l.current.Load()
	if s == nil {
		return
	}
	search := o.searchLocked(l, s, now)
	if size := s.sizes.refused.Swap(0); size != 0 {
		search.Refused(int(size))
	}
	if o.searchingLocked(l, s, now) {
		long := s.sizes.long.Load()
		if long {
			o.suspectLocked(l, search, now)
		}
		probes := search.Step(now.at, long)
		if len(probes) > 0 && long {
			s.sizes.long.Store(false)
		}
		for _, size := range probes {
			o.probeSizeLocked(l, s, search, size, now)
		}
		o.scheduleLocked(l, max(search.Due(s.sizes.long.Load()), now.at+time.Millisecond))
	}
	tellLimit(s, search)
}

// suspectLocked has the limit confirmed early where nothing comes back: it may be swallowed.
func (o *Overlay) suspectLocked(l *link, search *pmtu.Search, now moment) {
	look := now.at + suspectAfter
	if since := time.Duration(l.unanswered.Load()); since == 0 {
		// Silence may begin at any moment from now on.
	} else if now.at-since >= suspectAfter {
		search.Suspect(now.at)
	} else {
		look = since + suspectAfter
	}
	o.scheduleLocked(l, look)
}

// searchingLocked reports whether the link is used enough for its paths to be searched.
func (o *Overlay) searchingLocked(l *link, s *session, now moment) bool {
	return now.at-s.at < searchWhileUsed || now.at-time.Duration(l.lastData.Load()) < searchWhileUsed
}

// probeSizeLocked sends a ping of a size.
func (o *Overlay) probeSizeLocked(l *link, s *session, search *pmtu.Search, size int, now moment) {
	p := sizeProbe{randomID(), now.at, *s.path.Load(), size}
	body := make([]byte, size-noise.Overhead) // bytes after the id are ignored
	copy(body, pingMessage(p.id))
	record, err := s.noise.Seal(make([]byte, 0, size), noise.FlagControl, body)
	if err != nil {
		o.counters.drop(DropSeal)
		return
	}
	// Whether the peer is there is not asked with it: it may be too long.
	switch err := o.under.Send(p.path, [][]byte{record}); {
	case errors.Is(err, underlay.ErrTooBig):
		search.Refused(size)
		return
	case err != nil:
		o.counters.drop(DropSend)
	}
	if len(l.sizes.probes) >= maxProbes {
		l.sizes.probes = slices.Delete(l.sizes.probes, 0, 1)
	}
	l.sizes.probes = append(l.sizes.probes, p)
}

// sizeAnsweredLocked takes a pong, if it answers a ping of a search.
func (o *Overlay) sizeAnsweredLocked(l *link, id uint64, at time.Duration) {
	i := slices.IndexFunc(l.sizes.probes, func(p sizeProbe) bool { return p.id == id })
	if i < 0 {
		return
	}
	p := l.sizes.probes[i]
	l.sizes.probes = slices.Delete(l.sizes.probes, i, i+1)
	for _, known := range l.sizes.searches {
		if paths.Same(known.path, p.path) {
			known.search.Answered(p.size, at-p.at, at)
			o.scheduleLocked(l, at)
		}
	}
}

// narrow reports whether the path is not known to carry the largest handshake datagrams.
func (z *sizes) narrow() bool { return z.found.Load().limit < noise.MaxDatagram }

// narrowLocked reports whether the path in use, or the one that was used last, is too narrow for the largest handshake datagrams.
func (l *link) narrowLocked() bool {
	if s := l.current.Load(); s != nil {
		return s.sizes.narrow()
	}
	return l.last.narrow
}

// aliveLocked says that a ping along the path in use was answered.
func (o *Overlay) aliveLocked(l *link, now moment) {
	if list := l.sizes.searches; len(list) > 0 && !list[0].search.Settled() {
		list[0].search.Alive(now.at)
		o.scheduleLocked(l, now.at)
	}
}

// refuse notes that the host's own interface is too narrow for what was sent. The loops call it.
func (z *sizes) refuse(size int) {
	for {
		old := z.refused.Load()
		if old != 0 && int(old) <= size || z.refused.CompareAndSwap(old, int32(size)) {
			return
		}
	}
}

// assembler makes whole what comes in parts.
func (z *sizes) assembler() *parts.Assembler {
	if a := z.whole.Load(); a != nil {
		return a
	}
	z.whole.CompareAndSwap(nil, new(parts.Assembler))
	return z.whole.Load()
}

// records seals a packet for the session: in one record, or in parts where the path is narrow.
func (s *session) records(p []byte) ([][]byte, error) {
	room := s.sizes.found.Load().limit - noise.Overhead
	count := parts.Count(len(p), room)
	if count == 0 {
		record, err := s.noise.Seal(make([]byte, 0, len(p)+noise.Overhead), 0, p)
		return [][]byte{record}, err
	}
	var records [][]byte
	id := s.sizes.packet.Add(1)
	for i := range count {
		part := parts.Append(make([]byte, 0, room), p, id, i, count)
		record, err := s.noise.Seal(make([]byte, 0, len(part)+noise.Overhead), noise.FlagPart, part)
		if err != nil {
			return nil, err
		}
		records = append(records, record)
	}
	return records, nil
}
