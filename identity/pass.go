// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"fmt"
	"slices"
	"time"
)

const passDomain = "pilot relay pass v1"

// RelayPass is the authority's word that an agent belongs to the network, for relays: a certificate without what a relay
// has no need to know, the name above all. It lasts as long as the certificate that came with it.
type RelayPass struct {
	Network   AuthorityPublic
	Agent     AgentPublic
	NotBefore time.Time
	NotAfter  time.Time
	Serial    uint64 // of the certificate: what revokes that revokes the pass
	signed
}

type passBody struct {
	_         struct{} `cbor:",toarray"`
	Network   [KeySize]byte
	Agent     [KeySize]byte
	NotBefore uint64
	NotAfter  uint64
	Serial    uint64
}

// Sign returns a copy signed by the authority: times cut to seconds, Network set to the key's public half.
func (p RelayPass) Sign(key AuthorityKey) (RelayPass, error) {
	body := passBody{
		Network: key.Public(), Agent: p.Agent, NotBefore: seconds(p.NotBefore), NotAfter: seconds(p.NotAfter), Serial: p.Serial,
	}
	if err := body.check(); err != nil {
		return RelayPass{}, err
	}
	raw, err := seal(passDomain, MaxRelayPass, key.Signer(), body)
	if err != nil {
		return RelayPass{}, err
	}
	return body.open(raw), nil
}

// OpenRelayPass decodes a pass and checks that the network's authority signed it. It does not look at the time.
func OpenRelayPass(raw []byte, network AuthorityPublic) (RelayPass, error) {
	var body passBody
	verify, err := unseal(passDomain, MaxRelayPass, raw, &body)
	if err != nil {
		return RelayPass{}, fmt.Errorf("relay pass: %w", err)
	}
	if body.Network != network {
		return RelayPass{}, fmt.Errorf("relay pass: %w", ErrNetwork)
	}
	if err := verify(network); err != nil {
		return RelayPass{}, fmt.Errorf("relay pass: %w", err)
	}
	if err := body.check(); err != nil {
		return RelayPass{}, fmt.Errorf("relay pass: %w", err)
	}
	return body.open(raw), nil
}

func (b passBody) check() error {
	if Reserved(NetworkPrefix(b.Network), Address(b.Network, b.Agent)) {
		return fmt.Errorf("%w: the agent's address is a reserved one", ErrField)
	}
	return checkSpan(b.NotBefore, b.NotAfter)
}

func (b passBody) open(raw []byte) RelayPass {
	return RelayPass{
		Network: b.Network, Agent: b.Agent, NotBefore: fromSeconds(b.NotBefore), NotAfter: fromSeconds(b.NotAfter), Serial: b.Serial,
		signed: signed{slices.Clone(raw)},
	}
}

// ValidAt returns nil, ErrNotYetValid or ErrExpired.
func (p RelayPass) ValidAt(now time.Time) error { return validAt(p.NotBefore, p.NotAfter, now) }
