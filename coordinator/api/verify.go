// SPDX-License-Identifier: Apache-2.0

package api

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"sync"
	"time"

	"github.com/pilot-protocol/pilot/identity"
)

// clientCertificateLife is how long a client certificate says that it is valid.
const clientCertificateLife = 24 * time.Hour

// serverVerifier returns the only check of a server's certificate: the authority's signature over the leaf, its time and
// its purpose. Names aren't checked, because any server that the authority vouches for will do.
func serverVerifier(authority identity.AuthorityPublic, now func() time.Time) func(tls.ConnectionState) error {
	return func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return keyMismatch("the server showed no certificate", nil)
		}
		return verifyLeaf(cs.PeerCertificates[0], authority, now())
	}
}

func verifyLeaf(leaf *x509.Certificate, authority identity.AuthorityPublic, now time.Time) error {
	switch {
	case leaf.SignatureAlgorithm != x509.PureEd25519,
		!ed25519.Verify(authority[:], leaf.RawTBSCertificate, leaf.Signature):
		return keyMismatch("the server's certificate isn't signed by this network's authority", nil)
	case leaf.IsCA, !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth):
		return keyMismatch("the server's certificate isn't one for a server", nil)
	case now.Before(leaf.NotBefore), now.After(leaf.NotAfter):
		return keyMismatch("the server's certificate isn't valid now", fmt.Errorf("valid from %s to %s, and here it is %s",
			leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339)))
	}
	return nil
}

func keyMismatch(message string, cause error) *Error {
	return &Error{Code: CodeKeyMismatch, Message: message, cause: cause,
		Hint: "Nothing was sent. Check the address, this host's clock, and that nobody intercepts TLS on the way."}
}

// clientCertificates makes the certificate that proves the agent's key, anew when half of its life is over.
type clientCertificates struct {
	key identity.AgentKey
	now func() time.Time

	mu      sync.Mutex
	current *tls.Certificate
	renew   time.Time
}

func (c *clientCertificates) get(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	if c.current != nil && now.Before(c.renew) && now.After(c.renew.Add(-clientCertificateLife)) {
		return c.current, nil
	}
	cert, err := newClientCertificate(c.key, now)
	if err != nil {
		return nil, err
	}
	c.current, c.renew = cert, now.Add(clientCertificateLife/2)
	return cert, nil
}

func newClientCertificate(key identity.AgentKey, now time.Time) (*tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixMilli()),
		Subject:      pkix.Name{CommonName: key.Public().String()},
		NotBefore:    now.Add(-time.Hour), // the server's clock may be behind
		NotAfter:     now.Add(clientCertificateLife),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	signer := key.Signer()
	der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("making the client certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: signer}, nil
}

// ErrClientCertificate says why a client certificate proves no agent's key.
var ErrClientCertificate = errors.New("not a self-signed Ed25519 certificate")

// ClientAgent returns the agent that a client certificate of a finished TLS handshake proves. The handshake proves that
// the client has the key; the certificate only carries it. Its times aren't checked: the key's owner chose them, so they
// would only keep out agents whose clock is wrong.
func ClientAgent(cs *tls.ConnectionState) (identity.AgentPublic, error) {
	var agent identity.AgentPublic
	if cs == nil || len(cs.PeerCertificates) != 1 {
		return agent, fmt.Errorf("%w: exactly one is needed", ErrClientCertificate)
	}
	cert := cs.PeerCertificates[0]
	key, ok := cert.PublicKey.(ed25519.PublicKey)
	if !ok || cert.SignatureAlgorithm != x509.PureEd25519 || !ed25519.Verify(key, cert.RawTBSCertificate, cert.Signature) {
		return agent, ErrClientCertificate
	}
	copy(agent[:], key)
	return agent, nil
}
