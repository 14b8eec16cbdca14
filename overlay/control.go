// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"container/heap"
	"context"
	"math"
	"time"

	"github.com/pilot-protocol/pilot/noise"
	"github.com/pilot-protocol/pilot/overlay/packet"
	"github.com/pilot-protocol/pilot/overlay/paths"
)

// The timers. Handshakes are in handshake.go.
const (
	// lookEvery is how often a link with a session is looked at: all of its timers but those of handshakes are this exact.
	lookEvery = time.Second
	// quietEvery is the same for a link without any traffic, of which nothing is due before its sessions expire; but consent
	// may end, and the host may sleep.
	quietEvery = 10 * time.Second
	// lostAfter: when so long nothing came after we sent, programs with a connection to the peer are told.
	lostAfter = time.Second
	// silentAfter: when still nothing came, the peer is called anew at all its addresses. The session goes on meanwhile.
	silentAfter = 4 * time.Second
	// silentOfflineAfter is the same for a peer that is said to be offline; it is called once. Together with offlineTry
	// it must not be below silentAfter, which is what a session has at least before it ends.
	silentOfflineAfter = 2 * time.Second
	// keepaliveAfter: when packets came and nothing was sent for so long, the peer gets an empty record, so that it does
	// not have to ask.
	keepaliveAfter = 10 * time.Second
	// refreshPatience is how long a peer may take to answer after our addresses changed, before it is called anew.
	refreshPatience = time.Second
	// confirmWithin is how long a session of the peer's may stay without its first record.
	confirmWithin = 10 * time.Second
	// pendingPatience is how long packets wait for that record before we call ourselves.
	pendingPatience = time.Second
	// offlineTry is how long the one first message to a peer that is said to be offline may take to be answered.
	offlineTry = 2 * time.Second
	// rekeyIfUsedWithin: a session that is due for renewal and was not used for so long is left to expire.
	rekeyIfUsedWithin = 30 * time.Second
	// responderRekeyAfter: where the initiator has not renewed a session that is used, the responder does. (Sessions end
	// at noise.ExpireAfter; a handshake and its retries must fit in between.)
	responderRekeyAfter = noise.ExpireAfter - 15*time.Second
	// refusedFor and failedFor are how long programs get their error at once after a refusal or a failed handshake.
	refusedFor = 10 * time.Second
	failedFor  = 10 * time.Second
	// tidyEvery is how often at most noise.Machine forgets what is old.
	tidyEvery = 5 * time.Second
	// never is when nothing is due.
	never = time.Duration(math.MaxInt64)
)

// controlLoop drives all timers, and handles what peers say about sessions.
func (o *Overlay) controlLoop(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	now, tidy := o.now(), never
	for {
		next := o.runTimers(now)
		o.serveFans()
		tidy = o.tidy(tidy, now)
		if again := o.runEchoes(now); again != 0 {
			next = min(next, again)
		}
		timer.Reset(max(0, min(next, tidy)-now.at))
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-o.wakes.kick:
		case m := <-o.messages:
			o.handleMessage(m)
		}
		now = o.now()
	}
}

// untidy tells control that noise.Machine may have something to forget.
func (o *Overlay) untidy() {
	if o.used.CompareAndSwap(false, true) {
		o.wakes.signal()
	}
}

// tidy has noise.Machine forget what is old, if that is due, and returns when it is next.
func (o *Overlay) tidy(due time.Duration, now moment) time.Duration {
	if o.used.Swap(false) {
		due = min(due, now.at+tidyEvery)
	}
	if now.at < due {
		return due
	}
	if again := o.noise.Tick(now.wall); again != 0 {
		return now.at + max(again, tidyEvery)
	}
	return never
}

// runTimers looks at all links that are due or were woken, and returns when the next one is.
func (o *Overlay) runTimers(now moment) time.Duration {
	o.mu.Lock()
	defer o.unlock()
	for _, l := range o.wakes.take() {
		o.lookLocked(l, now)
	}
	h := &o.control.timers
	for h.Len() > 0 && (*h)[0].due <= now.at {
		l, _ := heap.Pop(h).(*link)
		o.lookLocked(l, now)
	}
	if h.Len() == 0 {
		return never
	}
	return (*h)[0].due
}

// lookLocked looks at all timers of a link, in an order in which one may depend on those before it.
func (o *Overlay) lookLocked(l *link, now moment) {
	if o.control.ended {
		return
	}
	r, ok := o.snap.Load().routes[l.out]
	if !ok || r.link != l {
		o.endLocked(l, ReasonNotTrusted, now)
		return
	}
	if l.busyLocked() {
		if reason := o.snap.Load().admitted(r, l.serialLocked(), now); reason != "" {
			o.endLocked(l, reason, now)
			return
		}
	}
	o.confirmLocked(l, now)
	o.expireLocked(l, now)
	o.silenceLocked(l, now)
	o.keepaliveLocked(l, now)
	o.sizesLocked(l, now)
	o.rekeyLocked(l, now)
	o.retransmitLocked(l, now)
	o.serveQueueLocked(l, now)
	o.actLocked(l, now)
	o.lostLocked(l, now)
	o.rescheduleLocked(l, now)
}

// confirmLocked makes a session of the peer's ours when its first record came.
func (o *Overlay) confirmLocked(l *link, now moment) {
	s := l.pending
	if s == nil {
		return
	}
	l.unconfirmed.Store(true) // before the question, so that a record that comes in between is not missed
	switch {
	case s.noise.Confirmed():
		l.unconfirmed.Store(false)
		l.pending = nil
		o.adoptLocked(s, now)
	case now.at-s.at >= confirmWithin:
		l.unconfirmed.Store(false)
		l.pending = nil
		o.discard(s)
	}
}

// expireLocked ends sessions that are too old.
func (o *Overlay) expireLocked(l *link, now moment) {
	if s := l.previous; s != nil && s.expired(now) {
		l.previous = nil
		o.discard(s)
	}
	if s := l.current.Load(); s != nil && s.expired(now) {
		o.downLocked(l, ReasonExpired)
	}
}

// expired also counts the time that the host slept, which only the wall clock knows: the peer has counted it.
func (s *session) expired(now moment) bool {
	return s.noise.Expired(now.wall) || s.noise.Expired(now.wall.Round(0))
}

// lostLocked tells the loops whether the peer answers.
func (o *Overlay) lostLocked(l *link, now moment) {
	lost := now.at < l.failed
	if l.current.Load() == nil {
		lost = lost || l.attempt.active && l.attempt.tries > 1
	} else if since := time.Duration(l.unanswered.Load()); since != 0 {
		lost = lost || now.at-since >= lostAfter
	}
	l.lost.Store(lost)
}

// silenceLocked notices that the peer does not answer.
func (o *Overlay) silenceLocked(l *link, now moment) {
	s := l.current.Load()
	if s == nil {
		return
	}
	if l.refresh != 0 {
		if heard := time.Duration(l.received.Load()); heard > l.refresh {
			l.refresh = 0
		} else if now.at-l.refresh >= refreshPatience {
			l.refresh = 0
			o.beginLocked(l, now)
		}
	}
	since := time.Duration(l.unanswered.Load())
	if since == 0 {
		return
	}
	silent := now.at - since
	offline := o.offlineLocked(l)
	if !l.attempt.active && (silent >= silentAfter || offline && silent >= silentOfflineAfter) {
		o.callLocked(l, offline, now)
	}
}

// keepaliveLocked sends an empty record where packets came and none went.
func (o *Overlay) keepaliveLocked(l *link, now moment) {
	s := l.current.Load()
	owed := time.Duration(l.owed.Load())
	if s != nil && owed != 0 && now.at-owed >= keepaliveAfter {
		o.writeLocked(s, s.path.Load(), nil, false, now)
	}
}

// rekeyLocked renews a session that is used.
func (o *Overlay) rekeyLocked(l *link, now moment) {
	s := l.current.Load()
	if s == nil || l.attempt.active || l.pending != nil {
		return
	}
	if last := time.Duration(l.lastData.Load()); last == 0 || now.at-last > rekeyIfUsedWithin {
		return
	}
	if s.noise.NeedsRekey(now.wall) || (!s.noise.Initiator() && now.wall.Sub(s.noise.Created()) >= responderRekeyAfter) {
		o.beginLocked(l, now)
	}
}

// serveQueueLocked sends what waits, or sees to it that it can be sent, or answers it with an error.
func (o *Overlay) serveQueueLocked(l *link, now moment) {
	waiting := !l.queue.empty() || o.pingsWaitingLocked(l)
	if !waiting {
		return
	}
	if s := l.current.Load(); s != nil {
		o.flushQueueLocked(l, s, now)
		o.sendPingsLocked(l, s, now)
		return
	}
	if now.at < l.refused {
		o.answerQueueLocked(l, packet.AdminProhibited, DropRefused, now)
		o.failPingsLocked(l, &PingError{Err: ErrNotTrusted, Reason: l.refusal.code})
		return
	}
	if l.pending != nil && now.at-l.pending.at < pendingPatience {
		return // the peer's first record is on its way
	}
	offline := o.offlineLocked(l)
	if !l.attempt.active && now.at >= l.attempt.next {
		o.callLocked(l, offline, now)
	}
	switch {
	case now.at < l.failed, offline, !l.attempt.active:
		o.answerQueueLocked(l, packet.AddressUnreachable, DropUnreachable, now)
	case l.attempt.tries >= 3 && now.at-l.attempt.started >= unreachableAfter:
		l.failed = now.at + failedFor
		o.answerQueueLocked(l, packet.AddressUnreachable, DropUnreachable, now)
	}
}

// offlineLocked reports whether the peer is said not to be there.
func (o *Overlay) offlineLocked(l *link) bool {
	peer := o.snap.Load().peers[l.remote]
	return peer == nil || peer.Offline
}

// callLocked begins an attempt to make a session, with a single try for a peer that is said to be offline.
func (o *Overlay) callLocked(l *link, offline bool, now moment) {
	o.beginLocked(l, now)
	if offline && l.attempt.active {
		l.attempt.single, l.attempt.next = true, now.at+offlineTry
	}
}

// rescheduleLocked says when to look again.
func (o *Overlay) rescheduleLocked(l *link, now moment) {
	if l.current.Load() != nil || l.pending != nil || l.previous != nil {
		o.scheduleLocked(l, l.nextLookLocked(now))
	}
	if a := &l.attempt; a.active {
		next := min(a.next, a.started+giveUpAfter)
		if tell := a.started + unreachableAfter; tell > now.at {
			next = min(next, tell)
		}
		o.scheduleLocked(l, max(next, now.at+time.Millisecond))
	} else if l.pending == nil && (!l.queue.empty() || o.pingsWaitingLocked(l)) {
		o.scheduleLocked(l, max(l.attempt.next, now.at+pauseBetween/10))
	}
}

// nextLookLocked is when a link with a session is to be looked at, unless a packet goes either way before. It reads what
// the loops write after actLocked has asked them to say when they do.
func (l *link) nextLookLocked(now moment) time.Duration {
	last := time.Duration(l.lastData.Load())
	if l.pending != nil || l.attempt.active || l.refresh != 0 || l.lost.Load() || l.unanswered.Load() != 0 ||
		l.owed.Load() != 0 || now.at-last <= max(rekeyIfUsedWithin, searchWhileUsed) {
		return now.at + lookEvery
	}
	// All quiet links are looked at in the same moments: a node that has many wakes once for all of them.
	next := (now.at + quietEvery).Truncate(quietEvery)
	for _, s := range []*session{l.current.Load(), l.previous} {
		if s != nil {
			next = min(next, now.at+noise.ExpireAfter-now.wall.Sub(s.noise.Created()))
		}
	}
	return max(next, now.at+time.Millisecond)
}

// flushQueueLocked sends what waited for the session.
func (o *Overlay) flushQueueLocked(l *link, s *session, now moment) {
	for _, p := range l.queue.take() {
		records, err := s.records(p)
		if err != nil {
			o.counters.drop(DropSeal)
			continue
		}
		if err := o.under.Send(*s.path.Load(), records); err != nil {
			o.counters.drop(DropSend)
		}
		l.sent(now.at, true, true)
		l.txPackets.Add(1)
		l.txBytes.Add(uint64(len(p)))
	}
}

// answerQueueLocked gives each waiting packet's program an error.
func (o *Overlay) answerQueueLocked(l *link, code packet.Code, reason Drop, now moment) {
	service := o.snap.Load().service
	for _, p := range l.queue.take() {
		o.counters.drop(reason)
		var info packet.Info
		if packet.Parse(p, &info) != nil {
			continue // it was parsed before it was queued
		}
		switch {
		case code == packet.AdminProhibited:
			o.control.answers.deny(p, &info, service, now)
		case established(&info):
			o.control.answers.unreachable(p, &info, packet.NoRoute, service, now)
		default:
			o.control.answers.unreachable(p, &info, code, service, now)
		}
	}
}

// adoptLocked makes a session the one to send with. Where both ends began at once each has made two: both ends keep the
// one that the agent with the lower key began, and use the other to receive only.
func (o *Overlay) adoptLocked(s *session, now moment) {
	l := s.link
	old := l.current.Load()
	l.failed, l.refused = 0, 0
	l.failure.reason = ""
	if old != nil && s.attempt != 0 && old.attempt == s.attempt && old.noise.Initiator() != s.noise.Initiator() && firstOf(old) {
		o.retireLocked(l, s)
		return
	}
	l.lastHandshake = now.wall
	l.unanswered.Store(0)
	l.refresh = 0
	l.lost.Store(false)
	o.learnLocked(l, now)
	handshake := *s.path.Load()
	l.paths.Up(now.at, handshake, s.rtt)
	if p, ok := l.paths.Current(); ok {
		s.path.Store(&p) // not the one of the handshake, if it is a renewal and there is a better one
	}
	l.last = lastSeen{path: *s.path.Load(), tunnel: s.noise.RemoteTunnel()}
	// What waits goes first; what comes meanwhile wakes control, and follows.
	waiting := !l.queue.empty()
	o.carriedLocked(l, s, handshake, now)
	o.flushQueueLocked(l, s, now)
	l.current.Store(s)
	if old != nil {
		if from, to := *old.path.Load(), *s.path.Load(); !paths.Same(from, to) {
			o.events.emit(PathChanged{Local: l.local, Agent: l.remote, Addr: l.addr, Path: to})
		}
		o.retireLocked(l, old)
	} else {
		o.events.emit(SessionUp{Local: l.local, Agent: l.remote, Addr: l.addr, Path: *s.path.Load()})
	}
	sent := o.sendPingsLocked(l, s, now)
	sent = o.actLocked(l, now) || sent
	if s.noise.Initiator() && !waiting && !sent {
		o.writeLocked(s, s.path.Load(), nil, false, now) // the responder may not send before our first record
	}
	o.scheduleLocked(l, now.at)
}

// firstOf reports whether the session was begun by the agent with the lower key.
func firstOf(s *session) bool {
	localLower := string(s.link.local[:]) < string(s.link.remote[:])
	return localLower == s.noise.Initiator()
}

// retireLocked keeps a session to receive with.
func (o *Overlay) retireLocked(l *link, s *session) {
	if l.previous != nil {
		o.discard(l.previous)
	}
	l.previous = s
}

// discard forgets a session for good.
func (o *Overlay) discard(s *session) {
	o.sessions.set(s.noise.LocalIndex(), nil)
	o.noise.Release(s.noise.LocalIndex())
	s.noise.Wipe()
}

// downLocked ends all sessions of a link.
func (o *Overlay) downLocked(l *link, reason Reason) {
	was := l.current.Swap(nil)
	if was != nil {
		l.last.path, l.last.narrow = *was.path.Load(), was.sizes.found.Load().settled && was.sizes.narrow()
	}
	o.restartLocked(l, o.now())
	for _, s := range []*session{was, l.pending, l.previous} {
		if s != nil {
			o.discard(s)
		}
	}
	l.pending, l.previous = nil, nil
	l.paths.Down()
	l.said[saidInSession] = said{}
	o.actLocked(l, o.now())
	l.unconfirmed.Store(false)
	l.unanswered.Store(0)
	l.owed.Store(0)
	l.refresh = 0
	if was != nil {
		o.events.emit(SessionDown{Local: l.local, Agent: l.remote, Addr: l.addr, Reason: reason})
	}
}

// endLocked ends everything that a link has under way, because it may not go on: the peer is told, and so are programs.
func (o *Overlay) endLocked(l *link, reason Reason, now moment) {
	if s := l.current.Load(); s != nil {
		o.writeLocked(s, s.path.Load(), closedMessage(reason), false, now)
	}
	o.downLocked(l, reason)
	o.abandonLocked(l)
	o.answerQueueLocked(l, packet.AdminProhibited, DropRefused, now)
	o.failPingsLocked(l, &PingError{Err: ErrNotTrusted, Reason: string(reason)})
	if l.index >= 0 {
		heap.Remove(&o.control.timers, l.index)
	}
}

// farewell tells all peers that this node ends, so that they need not find out.
func (o *Overlay) farewell() {
	now := o.now()
	o.mu.Lock()
	defer o.unlock()
	o.control.ended = true
	for _, r := range o.snap.Load().routes {
		if s := r.link.current.Load(); s != nil {
			o.writeLocked(s, s.path.Load(), closedMessage(ReasonClosed), false, now)
		}
	}
}

// forgetAll drops all keys after Run.
func (o *Overlay) forgetAll() {
	o.mu.Lock()
	defer o.unlock()
	for _, r := range o.snap.Load().routes {
		o.downLocked(r.link, ReasonClosed)
		o.abandonLocked(r.link)
		o.failPingsLocked(r.link, &PingError{Err: ErrOffline, Reason: string(ReasonClosed)})
	}
}
