// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"fmt"
	"slices"
	"time"
)

const tunnelDomain = "pilot tunnel key v1"

// Suites is the set of Noise cipher suites that an agent can speak.
type Suites uint8

// The suites. Each agent speaks SuiteChaCha; SuiteAES needs AES instructions to be fast and free of timing leaks.
const (
	SuiteChaCha Suites = 1 << iota // 25519_ChaChaPoly_BLAKE2s
	SuiteAES                       // 25519_AESGCM_SHA256
)

// TunnelStatement is an agent's word that an X25519 key speaks for it in tunnels, for about a day.
type TunnelStatement struct {
	Network   AuthorityPublic
	Agent     AgentPublic
	Tunnel    TunnelPublic
	Suites    Suites
	NotBefore time.Time
	NotAfter  time.Time
	signed
}

type tunnelBody struct {
	_         struct{} `cbor:",toarray"`
	Network   [KeySize]byte
	Agent     [KeySize]byte
	Tunnel    [KeySize]byte
	Suites    uint8
	NotBefore uint64
	NotAfter  uint64
}

// Sign returns a copy signed by the agent, whose key becomes the statement's Agent.
func (t TunnelStatement) Sign(key AgentKey) (TunnelStatement, error) {
	body := tunnelBody{
		Network: t.Network, Agent: key.Public(), Tunnel: t.Tunnel, Suites: uint8(t.Suites),
		NotBefore: seconds(t.NotBefore), NotAfter: seconds(t.NotAfter),
	}
	if err := body.check(); err != nil {
		return TunnelStatement{}, err
	}
	raw, err := seal(tunnelDomain, MaxTunnelStatement, key.Signer(), body)
	if err != nil {
		return TunnelStatement{}, err
	}
	return body.open(raw), nil
}

// OpenTunnelStatement decodes a tunnel statement and checks that the agent it names signed it. It does not look at the time.
func OpenTunnelStatement(raw []byte, network AuthorityPublic) (TunnelStatement, error) {
	var body tunnelBody
	verify, err := unseal(tunnelDomain, MaxTunnelStatement, raw, &body)
	if err != nil {
		return TunnelStatement{}, fmt.Errorf("tunnel key: %w", err)
	}
	if err := verify(body.Agent); err != nil {
		return TunnelStatement{}, fmt.Errorf("tunnel key: %w", err)
	}
	if body.Network != network {
		return TunnelStatement{}, fmt.Errorf("tunnel key: %w", ErrNetwork)
	}
	if err := body.check(); err != nil {
		return TunnelStatement{}, fmt.Errorf("tunnel key: %w", err)
	}
	return body.open(raw), nil
}

func (b tunnelBody) check() error {
	if b.Suites&uint8(SuiteChaCha) == 0 || b.Suites&^uint8(SuiteChaCha|SuiteAES) != 0 {
		return fmt.Errorf("%w: suites %#x", ErrField, b.Suites)
	}
	if b.Tunnel == [KeySize]byte{} {
		return fmt.Errorf("%w: the tunnel key is empty", ErrField)
	}
	return checkSpan(b.NotBefore, b.NotAfter)
}

func (b tunnelBody) open(raw []byte) TunnelStatement {
	return TunnelStatement{
		Network: b.Network, Agent: b.Agent, Tunnel: b.Tunnel, Suites: Suites(b.Suites),
		NotBefore: fromSeconds(b.NotBefore), NotAfter: fromSeconds(b.NotAfter), signed: signed{slices.Clone(raw)},
	}
}

// ValidAt returns nil, ErrNotYetValid or ErrExpired.
func (t TunnelStatement) ValidAt(now time.Time) error { return validAt(t.NotBefore, t.NotAfter, now) }
