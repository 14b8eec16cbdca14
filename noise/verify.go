// SPDX-License-Identifier: Apache-2.0

package noise

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/pilot-protocol/pilot/identity"
)

// ClockSkew is by how much a statement's or a certificate's validity is stretched at both ends, because the clocks of
// signer and verifier differ. Revocation does not wait for it.
const ClockSkew = 5 * time.Minute

// peer is the verified other side.
type peer struct {
	certificate identity.Certificate
	statement   identity.TunnelStatement
}

// verify checks everything about the other side that does not depend on policy: signatures, network, validity, that
// the static key of the handshake is the one of the statement, and that statement and certificate are of one agent.
func (m *Machine) verify(now time.Time, c credentials, static []byte, s suite) (p peer, err error) {
	if p.statement, err = identity.OpenTunnelStatement(c.statement, m.network); err != nil {
		return p, fmt.Errorf("%w: %w", ErrStatement, err)
	}
	if !bytes.Equal(p.statement.Tunnel[:], static) {
		return p, fmt.Errorf("%w: the statement is about another tunnel key", ErrKeyMismatch)
	}
	if p.certificate, err = identity.OpenCertificate(c.certificate, m.network); err != nil {
		return p, fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	if p.certificate.Agent != p.statement.Agent {
		return p, fmt.Errorf("%w: statement and certificate are of two agents", ErrKeyMismatch)
	}
	if err = validAt(p.statement.ValidAt, now); err != nil {
		return p, fmt.Errorf("%w: %w", ErrStatement, err)
	}
	if err = validAt(p.certificate.ValidAt, now); err != nil {
		return p, fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	if !s.in(p.statement.Suites) {
		return p, ErrSuite
	}
	return p, nil
}

// admitted asks Options.Admit.
func (m *Machine) admitted(local identity.AgentPublic, p peer) error {
	if m.admit == nil {
		return nil
	}
	if err := m.admit(local, p.certificate, p.statement); err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return nil
}

// validAt is check with both ends of the span moved outward by ClockSkew.
func validAt(check func(time.Time) error, now time.Time) error {
	err := check(now)
	switch {
	case errors.Is(err, identity.ErrNotYetValid):
		return check(now.Add(ClockSkew))
	case errors.Is(err, identity.ErrExpired):
		return check(now.Add(-ClockSkew))
	}
	return err
}
