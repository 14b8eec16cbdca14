// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"encoding/binary"
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pilot-protocol/pilot/overlay/packet"
	"github.com/pilot-protocol/pilot/policy"
)

const (
	flowBuckets = 4096 // power of two
	flowWays    = 8
	flowShards  = 128 // power of two

	// verdictLife bounds how long an answer of the policy is used without asking again, so that the expiry of a consent
	// takes effect without a timer. A new State is asked at once.
	verdictLife = time.Second

	// How long a flow may be idle before a packet has to open it anew. TCP: longer than the two hours after which kernels
	// send keepalives (RFC 1122, section 4.2.3.6); UDP: RFC 4787, section 4.3 asks for two minutes or more.
	idleTCP     = 2*time.Hour + 10*time.Minute
	idleClosing = 2 * time.Minute
	idleUDP     = 3 * time.Minute
	idleEcho    = 30 * time.Second
)

// flowKey is a flow as this node sees it, whatever the direction of a packet: local and remote address, protocol, local
// and remote port.
type flowKey [37]byte

func keyOf(local packet.Addresses, proto uint8, localPort, remotePort uint16) (k flowKey) {
	copy(k[:32], local[:])
	k[32] = proto
	binary.BigEndian.PutUint16(k[33:], localPort)
	binary.BigEndian.PutUint16(k[35:], remotePort)
	return k
}

// flow is an entry: something that the policy allowed, and for whom.
type flow struct {
	key        flowKey
	used       bool
	outbound   bool // opened by the local agent
	closing    bool // a FIN or RST was seen
	generation uint64
	asked      time.Duration
	seen       time.Duration
}

func (f *flow) idle() time.Duration {
	switch {
	case f.closing:
		return idleClosing
	case f.key[32] == packet.TCP:
		return idleTCP
	case f.key[32] == packet.UDP:
		return idleUDP
	}
	return idleEcho
}

func (f *flow) live(now time.Duration) bool { return f.used && now-f.seen < f.idle() }

// question is everything that a packet's permission depends on, besides the packet.
type question struct {
	local      packet.Addresses // local agent's address, then the peer's
	peer       netip.Addr
	rules      *policy.Compiled
	generation uint64
	now        moment
	outbound   bool
}

// flowTable remembers which flows the policy allowed, so that each is asked once for each State, and answers come back.
// It is a set-associative cache of fixed size: where a bucket is full the flow that was idle for longest makes room, and
// is asked again if it wakes. Each bucket has its own lock, which only the packet loops take. Nothing allocates, but
// for the first flow of each shard: most nodes have few.
type flowTable struct {
	seed   maphash.Seed
	shards [flowShards]atomic.Pointer[flowShard]
}

type flowShard [flowBuckets / flowShards]flowBucket

type flowBucket struct {
	mu    sync.Mutex
	flows [flowWays]flow
}

func newFlowTable() *flowTable { return &flowTable{seed: maphash.MakeSeed()} }

func (t *flowTable) bucket(k *flowKey) *flowBucket {
	hash := maphash.Bytes(t.seed, k[:])
	place := &t.shards[hash%flowShards]
	s := place.Load()
	for s == nil {
		place.CompareAndSwap(nil, new(flowShard))
		s = place.Load()
	}
	return &s[hash/flowShards%(flowBuckets/flowShards)]
}

// permit answers for one packet between a local agent and a peer.
func (t *flowTable) permit(q *question, p []byte, info *packet.Info) policy.Verdict {
	if !info.PortKnown {
		// No memory either: an answer to a fragment would be a fragment that nobody can check.
		return q.rules.Decide(policy.Flow{Outbound: q.outbound, Peer: q.peer, Proto: info.Proto}, q.now.wall)
	}
	if info.IsError() {
		return t.permitError(q, p, info)
	}
	if info.Proto == packet.ICMPv6 && info.ICMPType != packet.TypeEchoRequest && info.ICMPType != packet.TypeEchoReply {
		return policy.DenyPort // neighbour discovery and the like have no place between agents
	}
	localPort, remotePort := info.DstPort, info.SrcPort
	if q.outbound {
		localPort, remotePort = info.SrcPort, info.DstPort
	}
	k := keyOf(q.local, info.Proto, localPort, remotePort)
	b := t.bucket(&k)
	b.mu.Lock()
	defer b.mu.Unlock()
	f := b.find(&k, q.now.at)
	// A segment that opens a connection is no answer, whatever went the other way before.
	opens := info.Proto == packet.TCP && info.TCPFlags&(packet.SYN|packet.ACK) == packet.SYN
	if f == nil || (opens && f.outbound != q.outbound) || !f.standing(q) {
		v := ask(q, &k, q.outbound)
		if v != policy.Allow {
			return v
		}
		if f == nil {
			f = b.victim(q.now.at)
		}
		*f = flow{key: k, used: true, outbound: q.outbound, generation: q.generation, asked: q.now.at}
	}
	f.seen = q.now.at
	if info.Proto == packet.TCP {
		switch {
		case info.TCPFlags&(packet.FIN|packet.RST) != 0:
			f.closing = true
		case opens:
			f.closing = false
		}
	}
	return policy.Allow
}

// permitError answers for an ICMPv6 error: allowed if it is about a packet of a standing flow that went the other way.
func (t *flowTable) permitError(q *question, p []byte, info *packet.Info) policy.Verdict {
	var inner packet.Info
	about, ok := packet.Quoted(p, info, &inner)
	if !ok || about != packet.AddressesOf(p).Swap() {
		return policy.DenyPort
	}
	localPort, remotePort := inner.SrcPort, inner.DstPort
	if q.outbound {
		localPort, remotePort = inner.DstPort, inner.SrcPort
	}
	k := keyOf(q.local, inner.Proto, localPort, remotePort)
	b := t.bucket(&k)
	b.mu.Lock()
	defer b.mu.Unlock()
	if f := b.find(&k, q.now.at); f != nil && f.standing(q) {
		return policy.Allow
	}
	return policy.DenyPort
}

// standing asks again about the one who opened the flow, if the last answer is too old.
func (f *flow) standing(q *question) bool {
	if f.generation == q.generation && q.now.at-f.asked < verdictLife {
		return true
	}
	if ask(q, &f.key, f.outbound) != policy.Allow {
		return false
	}
	f.generation, f.asked = q.generation, q.now.at
	return true
}

func ask(q *question, k *flowKey, outbound bool) policy.Verdict {
	port := binary.BigEndian.Uint16(k[33:])
	if outbound {
		port = binary.BigEndian.Uint16(k[35:])
	}
	return q.rules.Decide(policy.Flow{Outbound: outbound, Peer: q.peer, Proto: k[32], Port: port, PortKnown: true}, q.now.wall)
}

func (b *flowBucket) find(k *flowKey, now time.Duration) *flow {
	for i := range b.flows {
		if f := &b.flows[i]; f.key == *k && f.live(now) {
			return f
		}
	}
	return nil
}

// victim returns the place for a new flow: a free one, or the one that was idle for longest.
func (b *flowBucket) victim(now time.Duration) *flow {
	oldest := &b.flows[0]
	for i := range b.flows {
		f := &b.flows[i]
		if !f.live(now) {
			return f
		}
		if f.seen < oldest.seen {
			oldest = f
		}
	}
	return oldest
}

// recent is the route and the flow that a loop found last. It is kept for the packets that are handled with one reading of
// the clock and the snapshot, most of which are of one flow.
type recent struct {
	found bool
	key   packet.Addresses
	last  route

	allowed          bool
	proto            uint8
	srcPort, dstPort uint16
}

// route finds the route between a local agent and a peer.
func (c *recent) route(snap *snapshot, key *packet.Addresses) (route, bool) {
	if c.found && c.key == *key {
		return c.last, true
	}
	r, ok := snap.routes[*key]
	*c = recent{found: ok, key: *key, last: r}
	return r, ok
}

// flow reports whether a packet on the route that was found last is of the flow that was permitted last, and says nothing
// that the flow table must know.
func (c *recent) flow(info *packet.Info) bool {
	return c.allowed && info.Proto == c.proto && info.SrcPort == c.srcPort && info.DstPort == c.dstPort && plain(info)
}

// permitted notes that a packet on the route that was found last was permitted.
func (c *recent) permitted(info *packet.Info) {
	c.allowed, c.proto, c.srcPort, c.dstPort = plain(info), info.Proto, info.SrcPort, info.DstPort
}

func plain(info *packet.Info) bool {
	return info.Transport() && info.TCPFlags&(packet.SYN|packet.FIN|packet.RST) == 0
}
