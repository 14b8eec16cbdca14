// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"fmt"
	"slices"
	"time"
)

const (
	consentDomain    = "pilot consent v1"
	acceptanceDomain = "pilot acceptance v1"
)

// PortRange is a set of destination ports, First and Last included.
type PortRange struct {
	Proto uint8  `json:"proto"` // IP protocol number: 6 TCP, 17 UDP; 0: both
	First uint16 `json:"first"`
	Last  uint16 `json:"last"`
}

// Consent is an agent's word that another agent may talk to it. Trust is two consents, one each way.
type Consent struct {
	Network AuthorityPublic
	From    AgentPublic
	// To is an AgentPublic, or a JoinPublic where ToJoin is set: then it holds for each agent with an Acceptance.
	To        [KeySize]byte
	ToJoin    bool
	Reason    string
	Ports     []PortRange // what To may open towards From; empty: all
	Serial    uint64      // milliseconds since 1970 when it was made; a higher one replaces a lower one
	Expiry    time.Time   // zero: never
	Withdrawn bool        // the consent is taken back
	signed
}

type consentBody struct {
	_         struct{} `cbor:",toarray"`
	Network   [KeySize]byte
	From      [KeySize]byte
	To        [KeySize]byte
	ToJoin    bool
	Reason    string
	Ports     [][3]uint16 // protocol, first, last
	Serial    uint64
	Expiry    uint64
	Withdrawn bool
}

// Sign returns a copy signed by the agent, whose key becomes the consent's From.
func (c Consent) Sign(key AgentKey) (Consent, error) {
	body := consentBody{
		Network: c.Network, From: key.Public(), To: c.To, ToJoin: c.ToJoin, Reason: c.Reason, Ports: [][3]uint16{},
		Serial: c.Serial, Expiry: seconds(c.Expiry), Withdrawn: c.Withdrawn,
	}
	for _, p := range c.Ports {
		body.Ports = append(body.Ports, [3]uint16{uint16(p.Proto), p.First, p.Last})
	}
	if err := body.check(); err != nil {
		return Consent{}, err
	}
	raw, err := seal(consentDomain, MaxConsent, key.Signer(), body)
	if err != nil {
		return Consent{}, err
	}
	return body.open(raw), nil
}

// OpenConsent decodes a consent and checks that the agent it comes from signed it. It does not look at the time.
func OpenConsent(raw []byte, network AuthorityPublic) (Consent, error) {
	var body consentBody
	verify, err := unseal(consentDomain, MaxConsent, raw, &body)
	if err != nil {
		return Consent{}, fmt.Errorf("consent: %w", err)
	}
	if err := verify(body.From); err != nil {
		return Consent{}, fmt.Errorf("consent: %w", err)
	}
	if body.Network != network {
		return Consent{}, fmt.Errorf("consent: %w", ErrNetwork)
	}
	if err := body.check(); err != nil {
		return Consent{}, fmt.Errorf("consent: %w", err)
	}
	return body.open(raw), nil
}

func (b consentBody) check() error {
	if b.From == b.To {
		return fmt.Errorf("%w: a consent to oneself", ErrField)
	}
	if len(b.Ports) > maxPorts {
		return fmt.Errorf("%w: %d port ranges of at most %d", ErrField, len(b.Ports), maxPorts)
	}
	for _, p := range b.Ports {
		if (p[0] != 0 && p[0] != 6 && p[0] != 17) || p[1] == 0 || p[1] > p[2] {
			return fmt.Errorf("%w: protocol %d, ports %d to %d", ErrField, p[0], p[1], p[2])
		}
	}
	if b.Expiry > maxTime {
		return fmt.Errorf("%w: an expiry after the year 9999", ErrField)
	}
	return checkReason(b.Reason)
}

func (b consentBody) open(raw []byte) Consent {
	c := Consent{
		Network: b.Network, From: b.From, To: b.To, ToJoin: b.ToJoin, Reason: b.Reason, Serial: b.Serial,
		Expiry: fromSeconds(b.Expiry), Withdrawn: b.Withdrawn, signed: signed{slices.Clone(raw)},
	}
	for _, p := range b.Ports {
		c.Ports = append(c.Ports, PortRange{Proto: uint8(p[0]), First: p[1], Last: p[2]})
	}
	return c
}

// ActiveAt reports whether the consent holds: neither taken back nor expired.
func (c Consent) ActiveAt(now time.Time) bool {
	return !c.Withdrawn && (c.Expiry.IsZero() || now.Before(c.Expiry))
}

// Acceptance says that an agent stands for a join key. The join key's holder signs it when the agent joins; together
// with a consent to the join key it is a consent to the agent, which nobody without the invite can make, the
// coordinator included.
type Acceptance struct {
	Network AuthorityPublic
	Join    JoinPublic
	Agent   AgentPublic
	signed
}

type acceptanceBody struct {
	_       struct{} `cbor:",toarray"`
	Network [KeySize]byte
	Join    [KeySize]byte
	Agent   [KeySize]byte
}

// Sign returns a copy signed by the join key, whose public half becomes the acceptance's Join.
func (a Acceptance) Sign(key JoinKey) (Acceptance, error) {
	body := acceptanceBody{Network: a.Network, Join: key.Public(), Agent: a.Agent}
	raw, err := seal(acceptanceDomain, MaxAcceptance, key.Signer(), body)
	if err != nil {
		return Acceptance{}, err
	}
	return body.open(raw), nil
}

// OpenAcceptance decodes an acceptance and checks that the join key it names signed it.
func OpenAcceptance(raw []byte, network AuthorityPublic) (Acceptance, error) {
	var body acceptanceBody
	verify, err := unseal(acceptanceDomain, MaxAcceptance, raw, &body)
	if err != nil {
		return Acceptance{}, fmt.Errorf("acceptance: %w", err)
	}
	if err := verify(body.Join); err != nil {
		return Acceptance{}, fmt.Errorf("acceptance: %w", err)
	}
	if body.Network != network {
		return Acceptance{}, fmt.Errorf("acceptance: %w", ErrNetwork)
	}
	return body.open(raw), nil
}

func (b acceptanceBody) open(raw []byte) Acceptance {
	return Acceptance{Network: b.Network, Join: b.Join, Agent: b.Agent, signed: signed{slices.Clone(raw)}}
}

// Reaches reports whether the consent is one to the agent: directly, or through an acceptance of its join key.
func (c Consent) Reaches(agent AgentPublic, a Acceptance) bool {
	if !c.ToJoin {
		return c.To == agent
	}
	return a.Network == c.Network && [KeySize]byte(a.Join) == c.To && a.Agent == agent
}
