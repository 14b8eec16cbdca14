// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

const (
	certificateDomain = "pilot certificate v1"
	revocationDomain  = "pilot revocation v1"
)

// Certificate is the authority's word that an agent belongs to the network under a name. It lasts about a day.
type Certificate struct {
	Network      AuthorityPublic
	Agent        AgentPublic
	Name         string
	Tags         []string // sorted, at most 12
	Jurisdiction string   // where the agent runs, empty if nobody said
	NotBefore    time.Time
	NotAfter     time.Time
	Serial       uint64 // grows with each certificate that the authority signs for the agent
	signed
}

type certificateBody struct {
	_            struct{} `cbor:",toarray"`
	Network      [KeySize]byte
	Agent        [KeySize]byte
	Name         string
	Tags         []string
	Jurisdiction string
	NotBefore    uint64
	NotAfter     uint64
	Serial       uint64
}

// Sign returns a copy signed by the authority: times cut to seconds, tags sorted, Network set to the key's public half.
func (c Certificate) Sign(key AuthorityKey) (Certificate, error) {
	c.Network = key.Public()
	body := certificateBody{
		Network: c.Network, Agent: c.Agent, Name: c.Name, Tags: sortedTags(c.Tags), Jurisdiction: c.Jurisdiction,
		NotBefore: seconds(c.NotBefore), NotAfter: seconds(c.NotAfter), Serial: c.Serial,
	}
	if body.Tags == nil {
		body.Tags = []string{}
	}
	if err := body.check(); err != nil {
		return Certificate{}, err
	}
	raw, err := seal(certificateDomain, MaxCertificate, key.Signer(), body)
	if err != nil {
		return Certificate{}, err
	}
	return body.open(raw), nil
}

// OpenCertificate decodes a certificate and checks that the network's authority signed it. It does not look at the time.
func OpenCertificate(raw []byte, network AuthorityPublic) (Certificate, error) {
	var body certificateBody
	verify, err := unseal(certificateDomain, MaxCertificate, raw, &body)
	if err != nil {
		return Certificate{}, fmt.Errorf("certificate: %w", err)
	}
	if body.Network != network {
		return Certificate{}, fmt.Errorf("certificate: %w", ErrNetwork)
	}
	if err := verify(network); err != nil {
		return Certificate{}, fmt.Errorf("certificate: %w", err)
	}
	if err := body.check(); err != nil {
		return Certificate{}, fmt.Errorf("certificate: %w", err)
	}
	return body.open(raw), nil
}

func (b certificateBody) check() error {
	if err := ValidateName(b.Name); err != nil {
		return err
	}
	if Reserved(NetworkPrefix(b.Network), Address(b.Network, b.Agent)) {
		return fmt.Errorf("%w: the agent's address is a reserved one", ErrField)
	}
	if err := checkTags(b.Tags); err != nil {
		return err
	}
	if err := ValidateJurisdiction(b.Jurisdiction); err != nil {
		return err
	}
	return checkSpan(b.NotBefore, b.NotAfter)
}

func (b certificateBody) open(raw []byte) Certificate {
	return Certificate{
		Network: b.Network, Agent: b.Agent, Name: b.Name, Tags: b.Tags, Jurisdiction: b.Jurisdiction,
		NotBefore: fromSeconds(b.NotBefore), NotAfter: fromSeconds(b.NotAfter), Serial: b.Serial,
		signed: signed{slices.Clone(raw)},
	}
}

// ValidAt returns nil, ErrNotYetValid or ErrExpired.
func (c Certificate) ValidAt(now time.Time) error { return validAt(c.NotBefore, c.NotAfter, now) }

// Address is the agent's address in the certificate's network.
func (c Certificate) Address() netip.Addr { return Address(c.Network, c.Agent) }

// HasTag reports whether the certificate carries the tag.
func (c Certificate) HasTag(tag string) bool { return slices.Contains(c.Tags, tag) }

// Revocation is the authority's word that an agent's certificates up to a serial are void.
type Revocation struct {
	Network AuthorityPublic
	Agent   AgentPublic
	Serial  uint64 // certificates with this serial or a lower one are void
	Time    time.Time
	Reason  string
	signed
}

type revocationBody struct {
	_       struct{} `cbor:",toarray"`
	Network [KeySize]byte
	Agent   [KeySize]byte
	Serial  uint64
	Time    uint64
	Reason  string
}

// Sign returns a copy signed by the authority.
func (r Revocation) Sign(key AuthorityKey) (Revocation, error) {
	body := revocationBody{
		Network: key.Public(), Agent: r.Agent, Serial: r.Serial, Time: seconds(r.Time), Reason: r.Reason,
	}
	if err := body.check(); err != nil {
		return Revocation{}, err
	}
	raw, err := seal(revocationDomain, MaxRevocation, key.Signer(), body)
	if err != nil {
		return Revocation{}, err
	}
	return body.open(raw), nil
}

// OpenRevocation decodes a revocation and checks that the network's authority signed it.
func OpenRevocation(raw []byte, network AuthorityPublic) (Revocation, error) {
	var body revocationBody
	verify, err := unseal(revocationDomain, MaxRevocation, raw, &body)
	if err != nil {
		return Revocation{}, fmt.Errorf("revocation: %w", err)
	}
	if body.Network != network {
		return Revocation{}, fmt.Errorf("revocation: %w", ErrNetwork)
	}
	if err := verify(network); err != nil {
		return Revocation{}, fmt.Errorf("revocation: %w", err)
	}
	if err := body.check(); err != nil {
		return Revocation{}, fmt.Errorf("revocation: %w", err)
	}
	return body.open(raw), nil
}

func (b revocationBody) check() error {
	if b.Time > maxTime {
		return fmt.Errorf("%w: a time after the year 9999", ErrField)
	}
	return checkReason(b.Reason)
}

func (b revocationBody) open(raw []byte) Revocation {
	return Revocation{
		Network: b.Network, Agent: b.Agent, Serial: b.Serial, Time: fromSeconds(b.Time), Reason: b.Reason,
		signed: signed{slices.Clone(raw)},
	}
}
