// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"bytes"
	"container/heap"
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/noise"
	"github.com/pilot-protocol/pilot/overlay/packet"
	"github.com/pilot-protocol/pilot/overlay/paths"
	"github.com/pilot-protocol/pilot/policy"
	"github.com/pilot-protocol/pilot/underlay"
)

// session is a noise session with its path.
type session struct {
	noise  *noise.Session
	link   *link
	path   atomic.Pointer[underlay.Path] // only control stores
	heard  atomic.Pointer[underlay.Path] // the other one that the newest record came along, when control was told last
	newest atomic.Uint64                 // one more than the highest counter that was authenticated
	// attempt ties two sessions that both ends began at once: at an initiator the attempt that it comes from, at a
	// responder the attempt of ours that was under way when the peer's came; 0: none.
	attempt uint64
	at      time.Duration // when it was made
	sizes   sizes
	rtt     time.Duration // of its handshake; 0: not measured
}

// link is everything between one local agent and one peer. It lives as long as the State names both.
type link struct {
	local, remote identity.AgentPublic
	addr          netip.Addr       // the peer's
	out           packet.Addresses // of packets to the peer
	in            packet.Addresses // of packets from the peer

	// The loops' part.
	current            atomic.Pointer[session] // to send with; only control stores
	rxBytes, rxPackets atomic.Uint64
	txBytes, txPackets atomic.Uint64
	received           atomic.Int64 // when anything authentic came last
	lastData           atomic.Int64 // when a packet last went either way
	unanswered         atomic.Int64 // when we first sent what wants an answer and nothing came since; 0: never
	owed               atomic.Int64 // when the first packet came after we last sent anything; 0: never
	unconfirmed        atomic.Bool  // a responder's session waits for its first record
	idle               atomic.Bool  // control wants to know when a packet goes either way
	lost               atomic.Bool  // the peer does not answer at the moment: programs are told; only control stores
	queue              queue
	woken              atomic.Bool
	linkControl
}

// linkControl is guarded by Overlay.mu.
type linkControl struct {
	pending  *session // ours to answer, not confirmed yet
	previous *session // to receive with
	attempt  attempt

	due   time.Duration // when its timers are looked at next; 0: never
	index int           // in the heap

	sizes sizeSearches
	paths *paths.Set
	said  [maxSources]said // about where the peer is
	rtt   time.Duration
	// observed is the address that the peer sees us at.
	observed netip.AddrPort
	last     lastSeen
	refresh  time.Duration // when our addresses changed, until something comes; 0: not
	failed   time.Duration // until then the peer counts as unreachable
	refused  time.Duration // until then the peer counts as refusing us

	lastHandshake time.Time
	failure       struct {
		reason Reason
		at     time.Duration
	}
	refusal struct {
		code string
		at   time.Duration
	}
}

// lastSeen is where and with which tunnel key the peer was met last: what the coordinator says may be older, or nothing.
type lastSeen struct {
	path   underlay.Path
	tunnel identity.TunnelStatement
	narrow bool // the path was too narrow for the largest handshake datagrams
}

// attempt is a handshake of ours under way: first messages, again and again, until one is answered.
type attempt struct {
	active  bool
	serial  uint64
	id      uint32 // of the last first message
	tries   int
	started time.Duration
	sent    time.Duration // the last first message
	next    time.Duration
	reason  Reason // what was wrong with the last answer
	single  bool   // the peer is said to be offline: try once
	small   bool   // large datagrams do not leave the host
}

func newLink(local, remote identity.AgentPublic, addr netip.Addr, out packet.Addresses) *link {
	l := &link{local: local, remote: remote, addr: addr, out: out, in: out.Swap()}
	l.index, l.paths = -1, paths.New(randomID)
	return l
}

// busyLocked reports whether the link has anything that could end.
func (l *link) busyLocked() bool {
	return l.current.Load() != nil || l.pending != nil || l.previous != nil || l.attempt.active || !l.queue.empty()
}

// serialLocked is the serial of the certificate that the peer showed in its present session.
func (l *link) serialLocked() uint64 {
	for _, s := range []*session{l.current.Load(), l.pending, l.previous} {
		if s != nil {
			return s.noise.Remote().Serial
		}
	}
	return ^uint64(0)
}

// sent notes that a record went out: one that wants an answer, and whether it carried a packet.
func (l *link) sent(now time.Duration, wantsAnswer, data bool) {
	if wantsAnswer && l.unanswered.Load() == 0 {
		l.unanswered.Store(int64(now))
	}
	if l.owed.Load() != 0 {
		l.owed.Store(0)
	}
	if data {
		l.lastData.Store(int64(now))
	}
}

// heard notes that an authentic record came.
func (l *link) heard(now time.Duration, data bool) {
	l.received.Store(int64(now))
	if l.unanswered.Load() != 0 {
		l.unanswered.Store(0)
	}
	if data {
		l.lastData.Store(int64(now))
		if l.owed.Load() == 0 {
			l.owed.Store(int64(now))
		}
	}
}

// queueLength is how many packets wait for a link's handshake.
const queueLength = 64

// queue holds the packets that wait for a session. Its lock is held for a copy only.
type queue struct {
	mu      sync.Mutex
	packets [][]byte
}

func (q *queue) push(p []byte) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.packets) >= queueLength {
		return false
	}
	q.packets = append(q.packets, bytes.Clone(p))
	return true
}

func (q *queue) take() [][]byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	p := q.packets
	q.packets = nil
	return p
}

func (q *queue) empty() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.packets) == 0
}

// wakeList is how a loop asks control to look at a link. A link is in it once at most.
type wakeList struct {
	kick  chan struct{}
	mu    sync.Mutex // held for an append or a swap only
	links []*link
}

func (w *wakeList) add(l *link) {
	if !l.woken.CompareAndSwap(false, true) {
		return
	}
	w.mu.Lock()
	w.links = append(w.links, l)
	w.mu.Unlock()
	w.signal()
}

func (w *wakeList) signal() {
	select {
	case w.kick <- struct{}{}:
	default:
	}
}

func (w *wakeList) take() []*link {
	w.mu.Lock()
	defer w.mu.Unlock()
	links := w.links
	w.links = nil
	for _, l := range links {
		l.woken.Store(false)
	}
	return links
}

const sessionShards = 256 // power of two

// sessionTable finds the session of a record. Reading takes no lock; a change copies one shard.
type sessionTable struct {
	mu     sync.Mutex // guards changes
	shards [sessionShards]atomic.Pointer[map[uint32]*session]
}

func (t *sessionTable) get(index uint32) *session {
	m := t.shards[index%sessionShards].Load()
	if m == nil {
		return nil
	}
	return (*m)[index]
}

func (t *sessionTable) set(index uint32, s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	shard := &t.shards[index%sessionShards]
	next := make(map[uint32]*session)
	if old := shard.Load(); old != nil {
		maps.Copy(next, *old)
	}
	if s == nil {
		delete(next, index)
	} else {
		next[index] = s
	}
	shard.Store(&next)
}

func (t *sessionTable) count() (n int) {
	for i := range t.shards {
		if m := t.shards[i].Load(); m != nil {
			n += len(*m)
		}
	}
	return n
}

// timerHeap has the links whose timers run, the next one first.
type timerHeap []*link

func (h timerHeap) Len() int           { return len(h) }
func (h timerHeap) Less(i, j int) bool { return h[i].due < h[j].due }
func (h timerHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push implements heap.Interface.
func (h *timerHeap) Push(x any) {
	l, _ := x.(*link)
	l.index = len(*h)
	*h = append(*h, l)
}

// Pop implements heap.Interface.
func (h *timerHeap) Pop() any {
	old := *h
	l := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	l.index = -1
	return l
}

// scheduleLocked makes control look at the link's timers at a time, or earlier if it was going to.
func (o *Overlay) scheduleLocked(l *link, at time.Duration) {
	switch {
	case l.index < 0:
		l.due = at
		heap.Push(&o.control.timers, l)
	case at < l.due:
		l.due = at
		heap.Fix(&o.control.timers, l.index)
	default:
		return
	}
	o.wakes.signal()
}

// refusalCode is how a verdict travels to the side that was refused.
func refusalCode(v byte) string {
	if int(v) >= verdicts {
		return "other"
	}
	return policy.Verdict(v).String()
}
