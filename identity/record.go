// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

const (
	recordDomain = "pilot record v1"
	signalDomain = "pilot signal v1"
)

// Record is an agent's word on where its node can be reached in the underlay.
type Record struct {
	Network   AuthorityPublic
	Agent     AgentPublic
	Serial    uint64           // milliseconds since 1970 when it was made; a higher one replaces a lower one
	Endpoints []netip.AddrPort // at most 32
	Relays    []AgentPublic    // keys of the relays at which the node is, home first, at most 4
	// Carrier is the agent in whose name the node is at its relays, where that is not Agent: a node with several agents is
	// there once.
	Carrier AgentPublic
	signed
}

type recordBody struct {
	_         struct{} `cbor:",toarray"`
	Network   [KeySize]byte
	Agent     [KeySize]byte
	Serial    uint64
	Endpoints [][]byte // 16 bytes of address (RFC 4291, section 2.5.5.2 for IPv4), 2 bytes of port, network order
	Relays    [][KeySize]byte
}

// carriedRecordBody is a record with a carrier. One without has the shorter form, so that there is one form for each.
type carriedRecordBody struct {
	_         struct{} `cbor:",toarray"`
	Network   [KeySize]byte
	Agent     [KeySize]byte
	Serial    uint64
	Endpoints [][]byte
	Relays    [][KeySize]byte
	Carrier   [KeySize]byte
}

// plainRecordBody is a record from before there were relays. Such ones are in files and registries, and are still good.
type plainRecordBody struct {
	_         struct{} `cbor:",toarray"`
	Network   [KeySize]byte
	Agent     [KeySize]byte
	Serial    uint64
	Endpoints [][]byte
}

const endpointSize = 18

// Sign returns a copy signed by the agent, whose key becomes the record's Agent.
func (r Record) Sign(key AgentKey) (Record, error) {
	body := recordBody{
		Network: r.Network, Agent: key.Public(), Serial: r.Serial,
		Endpoints: packEndpoints(r.Endpoints), Relays: packRelays(r.Relays),
	}
	if err := body.check(); err != nil {
		return Record{}, err
	}
	var sealed any = body
	if !r.Carrier.IsZero() {
		if err := checkCarrier(r.Carrier, body.Agent); err != nil {
			return Record{}, err
		}
		sealed = carriedRecordBody{
			Network: body.Network, Agent: body.Agent, Serial: body.Serial, Endpoints: body.Endpoints, Relays: body.Relays,
			Carrier: r.Carrier,
		}
	}
	raw, err := seal(recordDomain, MaxRecord, key.Signer(), sealed)
	if err != nil {
		return Record{}, err
	}
	return body.open(raw, r.Carrier), nil
}

// OpenRecord decodes a record and checks that the agent it names signed it. One of four fields has no relays, and only one of
// six has a carrier.
func OpenRecord(raw []byte, network AuthorityPublic) (Record, error) {
	var body recordBody
	var carrier AgentPublic
	verify, err := unseal(recordDomain, MaxRecord, raw, &body)
	if errors.Is(err, ErrEncoding) {
		var carried carriedRecordBody
		if v, carriedErr := unseal(recordDomain, MaxRecord, raw, &carried); carriedErr == nil {
			verify, err = v, checkCarrier(carried.Carrier, carried.Agent)
			carrier = carried.Carrier
			body = recordBody{
				Network: carried.Network, Agent: carried.Agent, Serial: carried.Serial, Endpoints: carried.Endpoints, Relays: carried.Relays,
			}
		}
	}
	if errors.Is(err, ErrEncoding) {
		var plain plainRecordBody
		if v, plainErr := unseal(recordDomain, MaxRecord, raw, &plain); plainErr == nil {
			verify, err = v, nil
			body = recordBody{Network: plain.Network, Agent: plain.Agent, Serial: plain.Serial, Endpoints: plain.Endpoints}
		}
	}
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
	return body.open(raw, carrier), nil
}

func checkCarrier(carrier, agent [KeySize]byte) error {
	if carrier == [KeySize]byte{} || carrier == agent {
		return fmt.Errorf("%w: a carrier is another agent", ErrField)
	}
	return nil
}

func (b recordBody) check() error {
	if err := checkEndpoints(b.Endpoints); err != nil {
		return err
	}
	return checkRelays(b.Relays)
}

func (b recordBody) open(raw []byte, carrier AgentPublic) Record {
	return Record{
		Network: b.Network, Agent: b.Agent, Serial: b.Serial, Endpoints: unpackEndpoints(b.Endpoints),
		Relays: unpackRelays(b.Relays), Carrier: carrier, signed: signed{slices.Clone(raw)},
	}
}

// Signal is an agent's call to another one to reach out to it now, at these places. The coordinator passes it on and
// keeps nothing of it.
type Signal struct {
	Network   AuthorityPublic
	From      AgentPublic
	To        AgentPublic
	Serial    uint64           // milliseconds since 1970 when it was made; only a higher one than the last counts
	Endpoints []netip.AddrPort // at most 32
	Relays    []AgentPublic    // as in a Record
	signed
}

type signalBody struct {
	_         struct{} `cbor:",toarray"`
	Network   [KeySize]byte
	From      [KeySize]byte
	To        [KeySize]byte
	Serial    uint64
	Endpoints [][]byte
	Relays    [][KeySize]byte
}

// Sign returns a copy signed by the agent, whose key becomes the signal's From.
func (s Signal) Sign(key AgentKey) (Signal, error) {
	body := signalBody{
		Network: s.Network, From: key.Public(), To: s.To, Serial: s.Serial,
		Endpoints: packEndpoints(s.Endpoints), Relays: packRelays(s.Relays),
	}
	if err := body.check(); err != nil {
		return Signal{}, err
	}
	raw, err := seal(signalDomain, MaxSignal, key.Signer(), body)
	if err != nil {
		return Signal{}, err
	}
	return body.open(raw), nil
}

// OpenSignal decodes a signal and checks that the agent it comes from signed it. It does not look at the time.
func OpenSignal(raw []byte, network AuthorityPublic) (Signal, error) {
	var body signalBody
	verify, err := unseal(signalDomain, MaxSignal, raw, &body)
	if err != nil {
		return Signal{}, fmt.Errorf("signal: %w", err)
	}
	if err := verify(body.From); err != nil {
		return Signal{}, fmt.Errorf("signal: %w", err)
	}
	if body.Network != network {
		return Signal{}, fmt.Errorf("signal: %w", ErrNetwork)
	}
	if err := body.check(); err != nil {
		return Signal{}, fmt.Errorf("signal: %w", err)
	}
	return body.open(raw), nil
}

func (b signalBody) check() error {
	if b.From == b.To {
		return fmt.Errorf("%w: a signal to oneself", ErrField)
	}
	if err := checkEndpoints(b.Endpoints); err != nil {
		return err
	}
	return checkRelays(b.Relays)
}

func (b signalBody) open(raw []byte) Signal {
	return Signal{
		Network: b.Network, From: b.From, To: b.To, Serial: b.Serial, Endpoints: unpackEndpoints(b.Endpoints),
		Relays: unpackRelays(b.Relays), signed: signed{slices.Clone(raw)},
	}
}

func packEndpoints(endpoints []netip.AddrPort) [][]byte {
	packed := make([][]byte, 0, len(endpoints))
	for _, e := range endpoints {
		a := e.Addr().As16()
		packed = append(packed, append(a[:], byte(e.Port()>>8), byte(e.Port())))
	}
	return packed
}

func unpackEndpoints(packed [][]byte) (endpoints []netip.AddrPort) {
	for _, e := range packed {
		endpoints = append(endpoints, endpoint(e))
	}
	return endpoints
}

func endpoint(b []byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[:16])).Unmap(), uint16(b[16])<<8|uint16(b[17]))
}

func checkEndpoints(packed [][]byte) error {
	if len(packed) > maxEndpoints {
		return fmt.Errorf("%w: %d endpoints of at most %d", ErrField, len(packed), maxEndpoints)
	}
	for _, e := range packed {
		if len(e) != endpointSize {
			return fmt.Errorf("%w: an endpoint of %d bytes", ErrField, len(e))
		}
		if p := endpoint(e); p.Port() == 0 || p.Addr().IsUnspecified() || p.Addr().IsMulticast() {
			return fmt.Errorf("%w: the endpoint %s", ErrField, p)
		}
	}
	return nil
}

func packRelays(relays []AgentPublic) [][KeySize]byte {
	packed := make([][KeySize]byte, 0, len(relays))
	for _, r := range relays {
		packed = append(packed, r)
	}
	return packed
}

func unpackRelays(packed [][KeySize]byte) (relays []AgentPublic) {
	for _, r := range packed {
		relays = append(relays, r)
	}
	return relays
}

func checkRelays(packed [][KeySize]byte) error {
	if len(packed) > maxRelays {
		return fmt.Errorf("%w: %d relays of at most %d", ErrField, len(packed), maxRelays)
	}
	for i, r := range packed {
		if r == [KeySize]byte{} || slices.Contains(packed[:i], r) {
			return fmt.Errorf("%w: relays have keys, and differ", ErrField)
		}
	}
	return nil
}
