// SPDX-License-Identifier: Apache-2.0

// Package ca is the coordinator's use of the authority key: membership certificates, passes, revocations, and the TLS
// certificates under which a coordinator is known. It decides nothing; who may be a member is the caller's business.
package ca

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"time"

	"github.com/pilot-protocol/pilot/identity"
)

const (
	// Life of membership certificates and of TLS leaves.
	Life = 24 * time.Hour
	// RenewAfter is the part of Life after which a certificate is renewed.
	RenewAfter = Life * 2 / 3
	// backdate lets a certificate count at once where the clock is somewhat behind.
	backdate = time.Hour
)

// CA signs with one authority key. It is immutable and safe for concurrent use.
type CA struct {
	key  identity.AuthorityKey
	root *x509.Certificate
}

// New returns a CA for the key.
func New(key identity.AuthorityKey) (*CA, error) {
	signer := key.Signer()
	id := sha256.Sum256(signer.Public().(ed25519.PublicKey))
	// Each coordinator makes the same root, byte for byte: Ed25519 is deterministic and nothing here is of the day.
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(id[:8]),
		Subject:      pkix.Name{CommonName: key.Public().String()},
		NotBefore:    time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // no end: RFC 5280, section 4.1.2.5
		IsCA:         true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage:     x509.KeyUsageCertSign,
		SubjectKeyId: id[:20],
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("making the authority's TLS certificate: %w", err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("making the authority's TLS certificate: %w", err)
	}
	return &CA{key: key, root: root}, nil
}

// Authority returns the public half of the key.
func (c *CA) Authority() identity.AuthorityPublic { return c.key.Public() }

// Root returns the authority's self-signed TLS certificate in DER. Clients other than pilot's own can be told to trust it.
func (c *CA) Root() []byte { return c.root.Raw }

// Issue signs a membership certificate for Life from now on. Of the argument, Agent, Name, Tags, Jurisdiction and Serial count.
func (c *CA) Issue(cert identity.Certificate, now time.Time) (identity.Certificate, error) {
	cert.NotBefore, cert.NotAfter = now.Add(-backdate), now.Add(Life)
	cert, err := cert.Sign(c.key)
	if err != nil {
		return identity.Certificate{}, fmt.Errorf("issuing a certificate: %w", err)
	}
	return cert, nil
}

// Pass signs a pass for relays for Life from now on, beside the certificate with that serial.
func (c *CA) Pass(agent identity.AgentPublic, serial uint64, now time.Time) (identity.RelayPass, error) {
	p, err := identity.RelayPass{Agent: agent, NotBefore: now.Add(-backdate), NotAfter: now.Add(Life), Serial: serial}.Sign(c.key)
	if err != nil {
		return identity.RelayPass{}, fmt.Errorf("issuing a pass for relays: %w", err)
	}
	return p, nil
}

// Relay signs that a key is a relay's, for Life from now on. Of the argument, all but Network and the times counts.
func (c *CA) Relay(r identity.RelayStatement, now time.Time) (identity.RelayStatement, error) {
	r.NotBefore, r.NotAfter = now.Add(-backdate), now.Add(Life)
	r, err := r.Sign(c.key)
	if err != nil {
		return identity.RelayStatement{}, fmt.Errorf("signing a relay's statement: %w", err)
	}
	return r, nil
}

// Revoke signs that the agent's certificates up to the serial are void.
func (c *CA) Revoke(agent identity.AgentPublic, serial uint64, reason string, now time.Time) (identity.Revocation, error) {
	r, err := identity.Revocation{Agent: agent, Serial: serial, Time: now, Reason: reason}.Sign(c.key)
	if err != nil {
		return identity.Revocation{}, fmt.Errorf("signing a revocation: %w", err)
	}
	return r, nil
}

// Leaf makes a fresh TLS key with a certificate for the names, each a DNS name or an IP address, for Life from now on.
// The chain ends with the root.
func (c *CA) Leaf(names []string, now time.Time) (*tls.Certificate, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a TLS key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()),
		Subject:      pkix.Name{CommonName: "pilot coordinator"},
		NotBefore:    now.Add(-backdate),
		NotAfter:     now.Add(Life),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, c.root, public, c.key.Signer())
	if err != nil {
		return nil, fmt.Errorf("making the TLS certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("making the TLS certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, c.root.Raw}, PrivateKey: private, Leaf: leaf}, nil
}
