// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"time"
)

const (
	relayDomain   = "pilot relay v1"
	relayIDDomain = "pilot relay id v1"

	maxRegion = 32
)

// RelayStatement is the authority's word that whoever has a key forwards sealed datagrams for the network, and where. It
// lasts about a day. A relay is what the authority says is one.
type RelayStatement struct {
	Network      AuthorityPublic
	Key          AgentPublic // the relay's: its TLS connections prove it
	Name         string      // a label, unique in the network
	Region       string      // where it is, for people to choose by; empty if nobody said
	Jurisdiction string      // whose law it is under, empty if nobody said
	Addresses    []string    // host:port of its TLS port, 1 to 8
	UDP          uint16      // its UDP port on the same hosts; 0: none
	NotBefore    time.Time
	NotAfter     time.Time
	Serial       uint64 // milliseconds since 1970 when it was made; a higher one replaces a lower one
	signed
}

type relayBody struct {
	_            struct{} `cbor:",toarray"`
	Network      [KeySize]byte
	Key          [KeySize]byte
	Name         string
	Region       string
	Jurisdiction string
	Addresses    []string
	UDP          uint16
	NotBefore    uint64
	NotAfter     uint64
	Serial       uint64
}

// Sign returns a copy signed by the authority: times cut to seconds, Network set to the key's public half.
func (r RelayStatement) Sign(key AuthorityKey) (RelayStatement, error) {
	body := relayBody{
		Network: key.Public(), Key: r.Key, Name: r.Name, Region: r.Region, Jurisdiction: r.Jurisdiction,
		Addresses: slices.Clone(r.Addresses), UDP: r.UDP,
		NotBefore: seconds(r.NotBefore), NotAfter: seconds(r.NotAfter), Serial: r.Serial,
	}
	if err := body.check(); err != nil {
		return RelayStatement{}, err
	}
	raw, err := seal(relayDomain, MaxRelayStatement, key.Signer(), body)
	if err != nil {
		return RelayStatement{}, err
	}
	return body.open(raw), nil
}

// OpenRelayStatement decodes a relay's statement and checks that the network's authority signed it. It does not look at
// the time.
func OpenRelayStatement(raw []byte, network AuthorityPublic) (RelayStatement, error) {
	var body relayBody
	verify, err := unseal(relayDomain, MaxRelayStatement, raw, &body)
	if err != nil {
		return RelayStatement{}, fmt.Errorf("relay: %w", err)
	}
	if body.Network != network {
		return RelayStatement{}, fmt.Errorf("relay: %w", ErrNetwork)
	}
	if err := verify(network); err != nil {
		return RelayStatement{}, fmt.Errorf("relay: %w", err)
	}
	if err := body.check(); err != nil {
		return RelayStatement{}, fmt.Errorf("relay: %w", err)
	}
	return body.open(raw), nil
}

func (b relayBody) check() error {
	if b.Key == [KeySize]byte{} {
		return fmt.Errorf("%w: the relay's key is empty", ErrField)
	}
	if err := validateLabel(b.Name); err != nil {
		return err
	}
	if err := ValidateRegion(b.Region); err != nil {
		return err
	}
	if err := ValidateJurisdiction(b.Jurisdiction); err != nil {
		return err
	}
	if len(b.Addresses) == 0 || len(b.Addresses) > maxAddresses {
		return fmt.Errorf("%w: a relay has 1 to %d addresses", ErrField, maxAddresses)
	}
	for _, a := range b.Addresses {
		if err := checkAddress(a); err != nil {
			return err
		}
	}
	return checkSpan(b.NotBefore, b.NotAfter)
}

func (b relayBody) open(raw []byte) RelayStatement {
	return RelayStatement{
		Network: b.Network, Key: b.Key, Name: b.Name, Region: b.Region, Jurisdiction: b.Jurisdiction,
		Addresses: b.Addresses, UDP: b.UDP,
		NotBefore: fromSeconds(b.NotBefore), NotAfter: fromSeconds(b.NotAfter), Serial: b.Serial,
		signed: signed{slices.Clone(raw)},
	}
}

// ValidAt returns nil, ErrNotYetValid or ErrExpired.
func (r RelayStatement) ValidAt(now time.Time) error { return validAt(r.NotBefore, r.NotAfter, now) }

// ID is the short form of the relay's key.
func (r RelayStatement) ID() uint32 { return RelayID(r.Key) }

// RelayID is a relay's short name where its key would be too long, such as in a path: the first four bytes, in network
// order, of SHA-256("pilot relay id v1" ‖ key), with 1 in place of 0. It selects among relays that are known and proves
// nothing.
func RelayID(key AgentPublic) uint32 {
	sum := sha256.Sum256(append([]byte(relayIDDomain), key[:]...))
	return max(1, binary.BigEndian.Uint32(sum[:]))
}

// ValidateRelayName reports with ErrName why s can't be a relay's name, which is one DNS label.
func ValidateRelayName(s string) error { return validateLabel(s) }

// ValidateRegion reports with ErrField why s can't be a region: empty or up to 32 of a-z, 0-9, '-', '.', ':'.
func ValidateRegion(s string) error {
	if s == "" {
		return nil
	}
	return checkWord("region", s, maxRegion)
}

// ValidateRelayAddress reports with ErrField why s can't be the address of a relay or a coordinator, which is host:port.
func ValidateRelayAddress(s string) error { return checkAddress(s) }
