// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
)

// Why the book doesn't take something in.
var (
	errKeyMismatch = errors.New("the name is known under another key")
	errRevoked     = errors.New("the agent was revoked")
	errForeign     = errors.New("it doesn't concern this agent")
)

// rejection is the reason of a withdrawal that answers a request with a no.
const rejection = "rejected"

// book is what a node knows of its network: verified, pure, and not safe for concurrent use. Nothing enters it
// without a signature that was checked, so that neither the coordinator nor a changed file can add to it.
type book struct {
	network     identity.AuthorityPublic
	self        identity.AgentPublic
	certificate identity.Certificate
	pass        identity.RelayPass // for relays; zero until a coordinator gave one
	peers       map[identity.AgentPublic]*peer
	consents    map[link]grant
	pins        map[string]identity.AgentPublic // name → key
	mismatches  map[string]identity.Certificate // name → the certificate that was refused
	revoked     map[identity.AgentPublic]identity.Revocation
	answered    map[identity.AgentPublic]uint64
	outbox      []identity.Consent
	relays      []identity.RelayStatement // as the coordinator listed them last
}

// link is one direction between two agents.
type link struct{ from, to identity.AgentPublic }

// grant is a consent, with the acceptance that makes it one to a certain agent where it was given to a join key.
type grant struct {
	consent    identity.Consent
	acceptance identity.Acceptance
}

// peer is another agent.
type peer struct {
	certificate identity.Certificate
	tunnel      identity.TunnelStatement // zero until the peer consents
	record      identity.Record
	observed    []netip.Addr
	online      bool
	lastSeen    time.Time
}

func newBook(network identity.AuthorityPublic, self identity.AgentPublic) *book {
	return &book{
		network: network, self: self,
		peers:      map[identity.AgentPublic]*peer{},
		consents:   map[link]grant{},
		pins:       map[string]identity.AgentPublic{},
		mismatches: map[string]identity.Certificate{},
		revoked:    map[identity.AgentPublic]identity.Revocation{},
		answered:   map[identity.AgentPublic]uint64{},
	}
}

// load takes in what was saved. Everything is verified again; what doesn't verify is an error, not a silent gap.
func (b *book) load(s savedNode) error {
	var err error
	if b.certificate, err = identity.OpenCertificate(s.Certificate, b.network); err != nil {
		return err
	}
	if b.certificate.Agent != b.self {
		return fmt.Errorf("the certificate is another agent's: %w", identity.ErrWrongKey)
	}
	if len(s.RelayPass) > 0 {
		if b.pass, err = openPass(s.RelayPass, b.network, b.self); err != nil {
			return err
		}
	}
	maps.Copy(b.pins, s.Pins)
	for _, a := range s.Answered {
		b.answered[a.Agent] = a.Serial
	}
	for _, raw := range s.Revocations {
		if _, err := b.addRevocation(raw); err != nil {
			return err
		}
	}
	for name, raw := range s.Mismatches {
		c, err := identity.OpenCertificate(raw, b.network)
		if err != nil {
			return err
		}
		b.mismatches[name] = c
	}
	for _, p := range s.Peers {
		if _, err := b.addPeer(p); err != nil && !errors.Is(err, errRevoked) && !errors.Is(err, errKeyMismatch) {
			return err
		}
	}
	for _, c := range s.Consents {
		if _, err := b.addConsent(c); err != nil && !errors.Is(err, errKeyMismatch) {
			return err
		}
	}
	for _, raw := range s.Outbox {
		c, err := identity.OpenConsent(raw, b.network)
		if err != nil {
			return err
		}
		b.outbox = append(b.outbox, c)
	}
	_, err = b.setRelays(s.Relays)
	return err
}

// openPass opens an agent's pass for relays.
func openPass(raw []byte, network identity.AuthorityPublic, agent identity.AgentPublic) (identity.RelayPass, error) {
	p, err := identity.OpenRelayPass(raw, network)
	if err == nil && p.Agent != agent {
		err = fmt.Errorf("the pass for relays is another agent's: %w", identity.ErrWrongKey)
	}
	return p, err
}

// openMembership opens what a coordinator answered to an agent that joined or renewed its certificate.
func openMembership(m api.Membership, network identity.AuthorityPublic, agent identity.AgentPublic) (
	c identity.Certificate, p identity.RelayPass, err error) {
	if c, err = identity.OpenCertificate(m.Certificate, network); err == nil && c.Agent != agent {
		err = identity.ErrWrongKey
	}
	if err == nil {
		p, err = openPass(m.RelayPass, network, agent)
	}
	if err != nil {
		err = fmt.Errorf("the coordinator's answer: %w", err)
	}
	return c, p, err
}

// save writes the book's part of s.
func (b *book) save(s *savedNode) {
	s.Certificate, s.RelayPass = b.certificate.Raw(), b.pass.Raw()
	s.Pins = maps.Clone(b.pins)
	s.Peers, s.Consents, s.Revocations, s.Answered, s.Outbox, s.Relays = nil, nil, nil, nil, nil, nil
	s.Mismatches = map[string][]byte{}
	for _, agent := range b.sortedPeers() {
		p := b.peers[agent]
		s.Peers = append(s.Peers, api.Peer{
			Certificate: p.certificate.Raw(), Tunnel: p.tunnel.Raw(), Record: p.record.Raw(), Observed: p.observed, LastSeen: p.lastSeen,
			Online: p.online,
		})
	}
	for _, l := range slices.SortedFunc(maps.Keys(b.consents), func(x, y link) int {
		return cmp.Or(strings.Compare(x.from.String(), y.from.String()), strings.Compare(x.to.String(), y.to.String()))
	}) {
		g := b.consents[l]
		s.Consents = append(s.Consents, api.ConsentEntry{Consent: g.consent.Raw(), Acceptance: g.acceptance.Raw()})
	}
	for _, r := range b.revoked {
		s.Revocations = append(s.Revocations, r.Raw())
	}
	for name, c := range b.mismatches {
		s.Mismatches[name] = c.Raw()
	}
	for agent, serial := range b.answered {
		s.Answered = append(s.Answered, answered{agent, serial})
	}
	for _, c := range b.outbox {
		s.Outbox = append(s.Outbox, c.Raw())
	}
	for _, r := range b.relays {
		s.Relays = append(s.Relays, r.Raw())
	}
}

// sortedPeers lists the peers by name, then by key.
func (b *book) sortedPeers() []identity.AgentPublic {
	return slices.SortedFunc(maps.Keys(b.peers), func(x, y identity.AgentPublic) int {
		return cmp.Or(strings.Compare(b.peers[x].certificate.Name, b.peers[y].certificate.Name), strings.Compare(x.String(), y.String()))
	})
}

// addPeer takes in what the coordinator says of a peer, as far as signatures bear it out. changed is about what the
// data path and the names depend on; presence alone also counts.
func (b *book) addPeer(in api.Peer) (changed bool, err error) {
	c, err := identity.OpenCertificate(in.Certificate, b.network)
	if err != nil {
		return false, err
	}
	if c.Agent == b.self {
		return false, errForeign
	}
	if r, ok := b.revoked[c.Agent]; ok && c.Serial <= r.Serial {
		return false, errRevoked
	}
	if err := b.pin(c); err != nil {
		return false, err
	}
	p := b.peers[c.Agent]
	if p == nil {
		p = &peer{certificate: c}
		b.peers[c.Agent] = p
		changed = true
	}
	if c.Serial > p.certificate.Serial {
		p.certificate, changed = c, true
	}
	if len(in.Tunnel) > 0 {
		t, err := identity.OpenTunnelStatement(in.Tunnel, b.network)
		if err != nil {
			return changed, err
		}
		if t.Agent != c.Agent {
			return changed, fmt.Errorf("tunnel key: %w", identity.ErrWrongKey)
		}
		if t.NotBefore.After(p.tunnel.NotBefore) { // an older one would undo a rotation
			p.tunnel, changed = t, true
		}
	}
	if len(in.Record) > 0 {
		r, err := identity.OpenRecord(in.Record, b.network)
		if err != nil {
			return changed, err
		}
		if r.Agent != c.Agent {
			return changed, fmt.Errorf("record: %w", identity.ErrWrongKey)
		}
		if r.Serial > p.record.Serial {
			p.record, changed = r, true
		}
	}
	if in.Online != p.online || !slices.Equal(in.Observed, p.observed) {
		p.online, p.observed, changed = in.Online, slices.Clone(in.Observed), true
	}
	if in.LastSeen.After(p.lastSeen) {
		p.lastSeen = in.LastSeen
	}
	return changed, nil
}

// pin binds a name to the key that was seen first under it.
func (b *book) pin(c identity.Certificate) error {
	known, ok := b.pins[c.Name]
	if ok && known != c.Agent || c.Name == b.certificate.Name && c.Agent != b.self {
		b.mismatches[c.Name] = c
		return errKeyMismatch
	}
	b.pins[c.Name] = c.Agent
	return nil
}

// acceptKey lets a person accept that a name has another key now. What was known under the old key goes.
func (b *book) acceptKey(name string, key identity.AgentPublic) error {
	c, ok := b.mismatches[name]
	if !ok || c.Agent != key {
		return &localapi.Error{Code: localapi.CodeNotFound, Message: fmt.Sprintf("no changed key %s waits under the name %s", key, name),
			Hint: "pilot status shows the key that was refused"}
	}
	if old, ok := b.pins[name]; ok {
		delete(b.peers, old)
	}
	delete(b.mismatches, name)
	b.pins[name] = key
	if p := b.peers[key]; p != nil { // known under another name: where it is, and its tunnel key, stay known
		p.certificate = c
	} else {
		b.peers[key] = &peer{certificate: c}
	}
	return nil
}

// addConsent takes in a consent from or to this agent. A lower serial than the one known is ignored.
func (b *book) addConsent(in api.ConsentEntry) (changed bool, err error) {
	c, err := identity.OpenConsent(in.Consent, b.network)
	if err != nil {
		return false, err
	}
	g, to := grant{consent: c}, identity.AgentPublic(c.To)
	if c.ToJoin {
		if g.acceptance, err = identity.OpenAcceptance(in.Acceptance, b.network); err != nil {
			return false, err
		}
		if to = g.acceptance.Agent; !c.Reaches(to, g.acceptance) {
			return false, fmt.Errorf("acceptance: %w", identity.ErrWrongKey)
		}
	}
	if c.From == to || c.From != b.self && to != b.self {
		return false, errForeign
	}
	if len(in.Other) > 0 {
		if changed, err = b.addPeer(api.Peer{Certificate: in.Other, Online: b.online(in.Other), Observed: b.observed(in.Other)}); err != nil {
			return changed, err
		}
	}
	l := link{c.From, to}
	if known, ok := b.consents[l]; ok && known.consent.Serial >= c.Serial {
		return changed, nil
	}
	b.consents[l] = g
	return true, nil
}

// online and observed keep what is known of presence when only a certificate arrives.
func (b *book) online(certificate []byte) bool {
	p := b.byCertificate(certificate)
	return p != nil && p.online
}

func (b *book) observed(certificate []byte) []netip.Addr {
	if p := b.byCertificate(certificate); p != nil {
		return p.observed
	}
	return nil
}

func (b *book) byCertificate(raw []byte) *peer {
	c, err := identity.OpenCertificate(raw, b.network)
	if err != nil {
		return nil
	}
	return b.peers[c.Agent]
}

// addRevocation takes in the authority's word that an agent is out.
func (b *book) addRevocation(raw []byte) (changed bool, err error) {
	r, err := identity.OpenRevocation(raw, b.network)
	if err != nil {
		return false, err
	}
	if known, ok := b.revoked[r.Agent]; ok && known.Serial >= r.Serial {
		return false, nil
	}
	b.revoked[r.Agent] = r
	return true, nil
}

// isRevoked reports whether a peer's certificate is void.
func (b *book) isRevoked(c identity.Certificate) bool {
	r, ok := b.revoked[c.Agent]
	return ok && c.Serial <= r.Serial
}

// ours and theirs return the latest consents between this agent and another, nil where none was ever given.
func (b *book) ours(agent identity.AgentPublic) *identity.Consent   { return b.consent(b.self, agent) }
func (b *book) theirs(agent identity.AgentPublic) *identity.Consent { return b.consent(agent, b.self) }

func (b *book) consent(from, to identity.AgentPublic) *identity.Consent {
	if g, ok := b.consents[link{from, to}]; ok {
		return &g.consent
	}
	return nil
}

// trust says how things stand between this agent and another.
func (b *book) trust(agent identity.AgentPublic, now time.Time) string {
	ours, theirs := b.ours(agent), b.theirs(agent)
	weDo, theyDo := ours != nil && ours.ActiveAt(now), theirs != nil && theirs.ActiveAt(now)
	switch {
	case agent == b.self:
		return localapi.TrustSelf
	case weDo && theyDo:
		return localapi.TrustMutual
	case theyDo && theirs.Serial > b.answered[agent]:
		return localapi.TrustPending
	case weDo && (theirs == nil || isAfter(ours, theirs)):
		return localapi.TrustRequested
	case ours == nil && theirs == nil:
		return localapi.TrustNone
	case ours != nil && ours.Withdrawn && ours.Reason == rejection, theirs != nil && theirs.Withdrawn && theirs.Reason == rejection:
		return localapi.TrustRejected
	}
	return localapi.TrustRevoked
}

// isAfter reports whether a consent was given after another one had ended: to give it is to ask again.
func isAfter(c, ended *identity.Consent) bool {
	if ended.Withdrawn {
		return c.Serial > ended.Serial
	}
	return time.UnixMilli(int64(min(c.Serial, math.MaxInt64))).After(ended.Expiry)
}

// sign makes a consent of this agent and takes it in at once; the coordinator gets it from the outbox.
func (b *book) sign(key identity.AgentKey, c identity.Consent, now time.Time) error {
	c.Network = b.network
	to := identity.AgentPublic(c.To)
	c.Serial = uint64(now.UnixMilli())
	if old := b.ours(to); old != nil {
		c.Serial = max(c.Serial, old.Serial+1)
	}
	signed, err := c.Sign(key)
	if err != nil {
		return err
	}
	if _, err := b.addConsent(api.ConsentEntry{Consent: signed.Raw()}); err != nil {
		return err
	}
	if signed.Withdrawn {
		if theirs := b.theirs(to); theirs != nil {
			b.answered[to] = theirs.Serial
		}
	}
	b.outbox = append(b.outbox, signed)
	return nil
}

// delivered removes a consent from the outbox.
func (b *book) delivered(c identity.Consent) {
	b.outbox = slices.DeleteFunc(b.outbox, func(o identity.Consent) bool { return o.To == c.To && o.Serial == c.Serial })
}

// find returns the agent that q names: a name, with or without the zone, an address, or a key.
func (b *book) find(q, zone string) (identity.AgentPublic, bool) {
	if key, err := identity.ParseAgentPublic(q); err == nil {
		_, ok := b.peers[key]
		return key, ok || key == b.self
	}
	if addr, err := netip.ParseAddr(q); err == nil {
		if addr == identity.Address(b.network, b.self) {
			return b.self, true
		}
		for agent := range b.peers {
			if identity.Address(b.network, agent) == addr {
				return agent, true
			}
		}
		return identity.AgentPublic{}, false
	}
	name := plainName(q, zone)
	if name == b.certificate.Name {
		return b.self, true
	}
	for agent, p := range b.peers {
		if p.certificate.Name == name {
			return agent, true
		}
	}
	return identity.AgentPublic{}, false
}

// plainName cuts a final dot and the zone, and lowers the case.
func plainName(q, zone string) string {
	name := strings.ToLower(strings.TrimSuffix(q, "."))
	return strings.TrimSuffix(name, "."+zone)
}
