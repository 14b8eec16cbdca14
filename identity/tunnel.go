// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

const (
	tunnelDomain = "pilot tunnel key v1"
	recordDomain = "pilot record v1"
)

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

// Record is an agent's word on where its node can be reached in the underlay.
type Record struct {
	Network   AuthorityPublic
	Agent     AgentPublic
	Serial    uint64           // milliseconds since 1970 when it was made; a higher one replaces a lower one
	Endpoints []netip.AddrPort // at most 32
	signed
}

type recordBody struct {
	_         struct{} `cbor:",toarray"`
	Network   [KeySize]byte
	Agent     [KeySize]byte
	Serial    uint64
	Endpoints [][]byte // 16 bytes of address (RFC 4291, section 2.5.5.2 for IPv4), 2 bytes of port, network order
}

const endpointSize = 18

// Sign returns a copy signed by the agent, whose key becomes the record's Agent.
func (r Record) Sign(key AgentKey) (Record, error) {
	body := recordBody{Network: r.Network, Agent: key.Public(), Serial: r.Serial, Endpoints: [][]byte{}}
	for _, e := range r.Endpoints {
		a := e.Addr().As16()
		body.Endpoints = append(body.Endpoints, append(a[:], byte(e.Port()>>8), byte(e.Port())))
	}
	if err := body.check(); err != nil {
		return Record{}, err
	}
	raw, err := seal(recordDomain, MaxRecord, key.Signer(), body)
	if err != nil {
		return Record{}, err
	}
	return body.open(raw), nil
}

// OpenRecord decodes a record and checks that the agent it names signed it.
func OpenRecord(raw []byte, network AuthorityPublic) (Record, error) {
	var body recordBody
	verify, err := unseal(recordDomain, MaxRecord, raw, &body)
	if err != nil {
		return Record{}, fmt.Errorf("record: %w", err)
	}
	if err := verify(body.Agent); err != nil {
		return Record{}, fmt.Errorf("record: %w", err)
	}
	if body.Network != network {
		return Record{}, fmt.Errorf("record: %w", ErrNetwork)
	}
	if err := body.check(); err != nil {
		return Record{}, fmt.Errorf("record: %w", err)
	}
	return body.open(raw), nil
}

func (b recordBody) check() error {
	if len(b.Endpoints) > maxEndpoints {
		return fmt.Errorf("%w: %d endpoints of at most %d", ErrField, len(b.Endpoints), maxEndpoints)
	}
	for _, e := range b.Endpoints {
		if len(e) != endpointSize {
			return fmt.Errorf("%w: an endpoint of %d bytes", ErrField, len(e))
		}
		if p := endpoint(e); p.Port() == 0 || p.Addr().IsUnspecified() || p.Addr().IsMulticast() {
			return fmt.Errorf("%w: the endpoint %s", ErrField, p)
		}
	}
	return nil
}

func endpoint(b []byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[:16])).Unmap(), uint16(b[16])<<8|uint16(b[17]))
}

func (b recordBody) open(raw []byte) Record {
	r := Record{Network: b.Network, Agent: b.Agent, Serial: b.Serial, signed: signed{slices.Clone(raw)}}
	for _, e := range b.Endpoints {
		r.Endpoints = append(r.Endpoints, endpoint(e))
	}
	return r
}
