// SPDX-License-Identifier: Apache-2.0

package noise

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pilot-protocol/pilot/identity"
)

// Options are what a Machine needs to know.
type Options struct {
	// Network is the authority that all certificates and statements must come from.
	Network identity.AuthorityPublic
	// Rand is a cryptographic source, safe for concurrent use; nil means crypto/rand.
	Rand io.Reader
	// AES says that this machine has AES instructions: initiations use the AES suite where both sides offer it.
	AES bool
	// Admit has the last word on a peer whose keys, statements and validity are already verified. It is called before
	// anything is answered and before a session is made, at both ends, possibly from many goroutines at once and
	// without a lock held. nil admits every member of the network.
	Admit func(local identity.AgentPublic, remote identity.Certificate, tunnel identity.TunnelStatement) error
}

// Local is an agent that lives behind this machine.
type Local struct {
	Agent identity.AgentPublic
	// Keys are its tunnel keys, newest first. The first is used to initiate; all answer.
	Keys []TunnelIdentity
	// Certificate is the raw membership certificate.
	Certificate []byte
}

// TunnelIdentity is a tunnel key with the raw statement that signs it.
type TunnelIdentity struct {
	Key       identity.TunnelKey
	Statement []byte
}

// Target is the agent that an initiation is for, as its signed tunnel statement says.
type Target struct {
	Agent  identity.AgentPublic
	Tunnel identity.TunnelPublic
	Suites identity.Suites
	// Small cuts the messages of both directions into three datagrams of at most MaxSmallDatagram bytes, for a path that
	// may be too narrow for larger ones.
	Small bool
}

// Initiation is a first message to be sent, all its datagrams in order.
type Initiation struct {
	// ID is the index of the session that will come of it.
	ID        uint32
	Datagrams [][]byte
}

// Result is what came of a handshake datagram.
type Result struct {
	// Reply are datagrams to be sent to where the datagram came from.
	Reply [][]byte
	// Session is a new session, or nil. Its index is held until Release.
	Session *Session
	// Initiator reports whether Session answers an Initiation of ours.
	Initiator bool
	// ID is the initiation of ours that the datagram belongs to, 0 if none. With an error that is not ErrIncomplete
	// that initiation has failed for good.
	ID uint32
	// Retry reports that the peer is under load and sent a cookie: the next Initiate for it will bear the cookie,
	// and may be called at once. True at most once for each initiation, and not for one that bore a cookie.
	Retry bool
}

// initiationLifetime is how long an answer may take.
const initiationLifetime = 20 * time.Second

// Machine makes sessions. It does no I/O and has no clock and no goroutines. Safe for concurrent use; the expensive
// parts of handshakes run outside of its lock.
type Machine struct {
	network identity.AuthorityPublic
	rand    io.Reader
	aes     bool
	admit   func(identity.AgentPublic, identity.Certificate, identity.TunnelStatement) error
	locals  atomic.Pointer[localSet]

	mu       sync.Mutex // guards all below
	indexes  map[uint32]struct{}
	pending  map[uint32]*initiation
	newest   map[pair]uint32 // the pending initiation for each pair of agents
	stamp    uint64          // last timestamp sent
	stamps   map[stampKey]stamp
	given    map[identity.TunnelPublic]givenCookie
	cookies  cookies
	load     load
	partials assembler
}

// pair is a local agent and a remote one.
type pair struct{ local, remote identity.AgentPublic }

// stampKey says whose initiations must come in order: those from one tunnel key to one local agent.
type stampKey struct {
	local  identity.AgentPublic
	tunnel identity.TunnelPublic
}

// stamp is the latest timestamp; nobody can replay anything after expiry, which is the statement's.
type stamp struct {
	value  uint64
	expiry time.Time
	agent  identity.AgentPublic // whose tunnel key it is
}

// maxStampsOfPeer is of how many tunnel keys of one agent, for one local agent, the timestamps are remembered. An agent has
// a new one each day, or when its clock was wrong.
const maxStampsOfPeer = 16

// givenCookie is a cookie that a responder gave us.
type givenCookie struct {
	cookie [macSize]byte
	at     time.Time
}

// localSet is the immutable view of the agents behind this machine.
type localSet struct {
	keys   []*localKey
	newest map[identity.AgentPublic]*localKey
	known  map[credential]*localKey
}

// credential is all that a localKey is made of.
type credential struct {
	agent                  identity.AgentPublic
	secret                 [identity.KeySize]byte
	statement, certificate string
}

// localKey is a tunnel key of a local agent, with what it needs to answer.
type localKey struct {
	agent  identity.AgentPublic
	key    identity.TunnelKey
	tunnel identity.TunnelPublic
	suites identity.Suites
	mac1   [keySize]byte
	cookie [keySize]byte
	credentials
}

// NewMachine returns a machine without local agents.
func NewMachine(o Options) (*Machine, error) {
	if o.Network.IsZero() {
		return nil, errors.New("noise: Options.Network is not set")
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	m := &Machine{
		network: o.Network, rand: o.Rand, aes: o.AES, admit: o.Admit,
		indexes: make(map[uint32]struct{}),
		pending: make(map[uint32]*initiation),
		newest:  make(map[pair]uint32),
		stamps:  make(map[stampKey]stamp),
		given:   make(map[identity.TunnelPublic]givenCookie),
		cookies: cookies{rand: o.Rand},
		load:    load{seed: maphash.MakeSeed()},
	}
	m.locals.Store(&localSet{})
	return m, nil
}

// SetLocals replaces the agents behind this machine. Sessions, and initiations under way, are not touched. It fails,
// changing nothing, if a key, a statement or a certificate does not fit its agent (ErrKeyMismatch), is not signed well
// (ErrStatement, ErrCertificate), or an agent is there twice or has no key. It does not look at validity in time.
func (m *Machine) SetLocals(locals []Local) error {
	old := m.locals.Load()
	set := &localSet{newest: make(map[identity.AgentPublic]*localKey, len(locals)), known: make(map[credential]*localKey, len(locals))}
	for _, l := range locals {
		if _, twice := set.newest[l.Agent]; twice || len(l.Keys) == 0 {
			return fmt.Errorf("noise: local agent %v: there twice or without a key", l.Agent)
		}
		for i, k := range l.Keys {
			// A node has many agents, and most of them are as they were: signatures are not checked twice.
			id := credential{agent: l.Agent, secret: k.Key.Bytes(), statement: string(k.Statement), certificate: string(l.Certificate)}
			key := old.known[id]
			if key == nil {
				var err error
				if key, err = m.localKey(l, k); err != nil {
					return fmt.Errorf("local agent %v: %w", l.Agent, err)
				}
			}
			set.keys, set.known[id] = append(set.keys, key), key
			if i == 0 {
				set.newest[l.Agent] = key
			}
		}
	}
	m.locals.Store(set)
	return nil
}

func (m *Machine) localKey(l Local, k TunnelIdentity) (*localKey, error) {
	certificate, err := identity.OpenCertificate(l.Certificate, m.network)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	if certificate.Agent != l.Agent {
		return nil, fmt.Errorf("%w: certificate", ErrKeyMismatch)
	}
	statement, err := identity.OpenTunnelStatement(k.Statement, m.network)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStatement, err)
	}
	tunnel := k.Key.Public()
	if statement.Agent != l.Agent || statement.Tunnel != tunnel {
		return nil, fmt.Errorf("%w: tunnel statement", ErrKeyMismatch)
	}
	return &localKey{
		agent: l.Agent, key: k.Key, tunnel: tunnel, suites: statement.Suites,
		mac1: labelKey(mac1Tag, tunnel), cookie: labelKey(cookieTag, tunnel),
		credentials: credentials{bytes.Clone(k.Statement), bytes.Clone(l.Certificate)},
	}, nil
}

// same reports whether both are one key, maybe from before and after a SetLocals.
func (k *localKey) same(other *localKey) bool {
	return k == other || k != nil && other != nil && k.agent == other.agent && k.tunnel == other.tunnel
}

// find returns the key that an initiation's mac1 was made for, or nil.
func (s *localSet) find(f *fragment) *localKey {
	sum := digest(f.signed)
	for _, k := range s.keys {
		if want := mac(k.mac1[:], sum); equal(want[:], f.mac1) {
			return k
		}
	}
	return nil
}

// Handle takes a datagram of KindHandshake that came from an address. Whatever it returns, the machine goes on.
// A Result can come with an error: look at Reply first, then at the error. The datagram is not kept.
func (m *Machine) Handle(now time.Time, datagram []byte, from netip.AddrPort) (Result, error) {
	if Kind(datagram) != KindHandshake {
		return Result{}, ErrMalformed
	}
	if datagram[0] == typeCookie {
		return m.receiveCookie(now, datagram)
	}
	f, err := parseFragment(datagram)
	if err != nil {
		return Result{}, err
	}
	if f.kind == typeAnswer {
		return m.receiveAnswer(now, &f)
	}
	return m.receiveInitiation(now, &f, from)
}

// Tick forgets what is too old, and returns when it should be called again, a duration from now; 0: nothing is left, nor
// will be before the next Handle or Initiate. More memory is all that a late call costs.
func (m *Machine) Tick(now time.Time) (again time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	until := func(end time.Time) {
		if wait := max(1, end.Sub(now)); again == 0 || wait < again {
			again = wait
		}
	}
	m.partials.expire(now)
	for _, p := range m.partials.list {
		until(p.born.Add(partialLifetime))
	}
	for _, in := range m.pending {
		if in.old(now) {
			m.dropLocked(in)
		} else {
			until(in.born.Add(initiationLifetime))
		}
	}
	for k, s := range m.stamps {
		if now.After(s.expiry) {
			delete(m.stamps, k)
		} else {
			until(s.expiry)
		}
	}
	for k, c := range m.given {
		if !c.fresh(now) {
			delete(m.given, k)
		} else {
			until(c.at.Add(cookieLifetime))
		}
	}
	return again
}

// Release gives back the index of a session, or abandons an initiation. Records for it must find no session from then on.
func (m *Machine) Release(index uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if in := m.pending[index]; in != nil {
		m.dropLocked(in)
	}
	delete(m.indexes, index)
}

// takeIndexLocked returns an unused random index that is not 0.
func (m *Machine) takeIndexLocked() (uint32, error) {
	for {
		var b [4]byte
		if _, err := io.ReadFull(m.rand, b[:]); err != nil {
			return 0, fmt.Errorf("noise: index: %w", err)
		}
		index := binary.BigEndian.Uint32(b[:])
		if _, used := m.indexes[index]; index != 0 && !used {
			m.indexes[index] = struct{}{}
			return index, nil
		}
	}
}

// forgetLocked takes an initiation out of the tables but keeps its index.
func (m *Machine) forgetLocked(in *initiation) {
	delete(m.pending, in.index)
	if p := in.pair(); m.newest[p] == in.index {
		delete(m.newest, p)
	}
}

// dropLocked abandons an initiation.
func (m *Machine) dropLocked(in *initiation) {
	m.forgetLocked(in)
	delete(m.indexes, in.index)
	in.wipe()
}

func (c givenCookie) fresh(now time.Time) bool {
	age := now.Sub(c.at)
	return age >= 0 && age < cookieLifetime
}
