// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/pilot-protocol/pilot/coordinator/store"
	"github.com/pilot-protocol/pilot/identity"
)

type noteKind uint8

const (
	agentChanged   noteKind = iota // the agent's entry, presence or address; agent is who
	consentChanged                 // the consent from or to agent; given says which
	inviteUsed                     // agent joined by an invite of the stream's owner
	relaysChanged                  // a relay came, went or moved
)

// note tells a stream what to read anew. It carries no state, so that notes can be merged and none is ever stale.
type note struct {
	kind  noteKind
	agent identity.AgentPublic
	given bool
}

// hub turns the registry's changes into notes for the streams of this process.
type hub struct {
	revoked func(agent identity.AgentPublic, serial uint64) // told of each revocation

	mu        sync.Mutex
	owners    map[identity.AgentPublic]map[*subscription]struct{} // by the agent whose stream it is
	followers map[identity.AgentPublic]map[*subscription]struct{} // by an agent that the stream shows
	guards    map[*subscription]struct{}                          // the streams that show every revocation
	online    map[string]struct{}                                 // presence entries, to tell a heartbeat from a change
	relays    map[string]string                                   // the same, with what they say
}

// subscription is one stream's mailbox. What waits in it is bounded by what the stream shows.
type subscription struct {
	hub     *hub
	owner   identity.AgentPublic
	follows map[identity.AgentPublic]struct{} // guarded by hub.mu
	wake    chan struct{}

	mu      sync.Mutex
	pending map[note]struct{}
	signals map[identity.AgentPublic][]byte // the latest of each sender
}

// maxSignals bounds how many agents' signals wait for a stream.
const maxSignals = 64

func newHub(revoked func(identity.AgentPublic, uint64)) *hub {
	return &hub{
		revoked: revoked, guards: make(map[*subscription]struct{}), relays: make(map[string]string),
		owners:    make(map[identity.AgentPublic]map[*subscription]struct{}),
		followers: make(map[identity.AgentPublic]map[*subscription]struct{}),
		online:    make(map[string]struct{}),
	}
}

// run watches the registry until the context ends, and calls started when no change will be missed any more.
func (h *hub) run(parent context.Context, s *store.Store, started func()) error {
	g, ctx := errgroup.WithContext(parent)
	watchers := []struct {
		bucket  *store.Bucket
		changed func(store.Change)
	}{
		{s.Agents, h.memberEntry}, {s.Seen, h.agentEntry}, {s.Consents, h.consentEntry},
		{s.Acceptances, h.acceptanceEntry}, {s.Presence, h.presenceEntry},
	}
	var ready sync.WaitGroup
	ready.Add(len(watchers) + 1)
	for _, w := range watchers {
		g.Go(func() error {
			done := sync.OnceFunc(ready.Done)
			defer done()
			return w.bucket.Watch(ctx, done, w.changed)
		})
	}
	g.Go(func() error {
		done := sync.OnceFunc(ready.Done)
		defer done()
		return s.Subscribe(ctx, signalSubject+"*.*", done, h.signal)
	})
	all := make(chan struct{})
	go func() { ready.Wait(); close(all) }()
	select {
	case <-all:
		started()
	case <-ctx.Done():
	}
	if err := g.Wait(); parent.Err() == nil {
		return fmt.Errorf("following the registry: %w", err)
	}
	return nil
}

func (h *hub) agentEntry(c store.Change) {
	if keys, ok := parseKeys(c.Key, 1); ok {
		h.agent(keys[0])
	}
}

// memberEntry is agentEntry, for entries that may have a revocation.
func (h *hub) memberEntry(c store.Change) {
	h.agentEntry(c)
	keys, ok := parseKeys(c.Key, 1)
	var a agentRecord
	if !ok || c.Gone || decodeEntry(c.Value, &a) != nil || !a.revoked() {
		return
	}
	h.revoked(keys[0], a.Serial)
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.guards {
		s.add(note{kind: agentChanged, agent: keys[0]})
	}
}

// relayEntry tells all streams of a change in the list of relays.
func (h *hub) relayEntry(c store.Change) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if last, was := h.relays[c.Key]; was == !c.Gone && last == string(c.Value) {
		return // a heartbeat
	}
	if h.relays[c.Key] = string(c.Value); c.Gone {
		delete(h.relays, c.Key)
	}
	for _, all := range h.owners {
		for s := range all {
			s.add(note{kind: relaysChanged})
		}
	}
}

func (h *hub) presenceEntry(c store.Change) {
	if strings.HasPrefix(c.Key, presenceRelay) {
		h.relayEntry(c)
		return
	}
	key, ok := strings.CutPrefix(c.Key, presenceAgent)
	if !ok {
		return
	}
	h.mu.Lock()
	_, was := h.online[key]
	if c.Gone {
		delete(h.online, key)
	} else {
		h.online[key] = struct{}{}
	}
	h.mu.Unlock()
	if was == c.Gone { // otherwise it is a heartbeat
		h.agentEntry(store.Change{Key: key})
	}
}

func (h *hub) agent(agent identity.AgentPublic) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.followers[agent] {
		s.add(note{kind: agentChanged, agent: agent})
	}
	for s := range h.owners[agent] {
		s.add(note{kind: agentChanged, agent: agent})
	}
}

func (h *hub) consentEntry(c store.Change) {
	keys, ok := parseKeys(c.Key, 2)
	if !ok {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.owners[keys[0]] {
		s.add(note{kind: consentChanged, agent: keys[1], given: true})
	}
	for s := range h.owners[keys[1]] {
		s.add(note{kind: consentChanged, agent: keys[0]})
	}
}

func (h *hub) acceptanceEntry(c store.Change) {
	keys, ok := parseKeys(c.Key, 3)
	if !ok {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.owners[keys[0]] {
		s.add(note{kind: inviteUsed, agent: keys[2]})
	}
}

// signal puts a call into the mailboxes of the agent that it is for. One that comes while many wait is lost: it is out of
// date soon anyhow.
func (h *hub) signal(subject string, raw []byte) {
	keys, ok := parseKeys(strings.TrimPrefix(subject, signalSubject), 2)
	if !ok {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.owners[keys[0]] {
		s.addSignal(keys[1], raw)
	}
}

// subscribe makes the mailbox of a stream of the agent. From now on it misses nothing that concerns the agent itself.
func (h *hub) subscribe(owner identity.AgentPublic) *subscription {
	s := &subscription{
		hub: h, owner: owner, follows: make(map[identity.AgentPublic]struct{}), wake: make(chan struct{}, 1),
		pending: make(map[note]struct{}), signals: make(map[identity.AgentPublic][]byte),
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	insert(h.owners, owner, s)
	return s
}

// close ends the subscription.
func (s *subscription) close() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	remove(s.hub.owners, s.owner, s)
	delete(s.hub.guards, s)
	for agent := range s.follows {
		remove(s.hub.followers, agent, s)
	}
}

// guard makes the stream miss no revocation from now on, whoever's it is.
func (s *subscription) guard() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	s.hub.guards[s] = struct{}{}
}

// follow makes the stream miss nothing that concerns the agent from now on.
func (s *subscription) follow(agent identity.AgentPublic) {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	s.follows[agent] = struct{}{}
	insert(s.hub.followers, agent, s)
}

func (s *subscription) add(n note) {
	s.mu.Lock()
	s.pending[n] = struct{}{}
	s.mu.Unlock()
	s.ring()
}

func (s *subscription) addSignal(from identity.AgentPublic, raw []byte) {
	s.mu.Lock()
	if _, waits := s.signals[from]; waits || len(s.signals) < maxSignals {
		s.signals[from] = raw
	}
	s.mu.Unlock()
	s.ring()
}

func (s *subscription) ring() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// take empties the mailbox.
func (s *subscription) take() (map[note]struct{}, map[identity.AgentPublic][]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	notes, signals := s.pending, s.signals
	s.pending, s.signals = make(map[note]struct{}), make(map[identity.AgentPublic][]byte)
	return notes, signals
}

func insert(m map[identity.AgentPublic]map[*subscription]struct{}, agent identity.AgentPublic, s *subscription) {
	if m[agent] == nil {
		m[agent] = make(map[*subscription]struct{})
	}
	m[agent][s] = struct{}{}
}

func remove(m map[identity.AgentPublic]map[*subscription]struct{}, agent identity.AgentPublic, s *subscription) {
	delete(m[agent], s)
	if len(m[agent]) == 0 {
		delete(m, agent)
	}
}
