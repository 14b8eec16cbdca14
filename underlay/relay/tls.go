// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"time"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/identity"
)

// certificateLife is how long a certificate says that it is valid. Neither end looks at it: the keys are what counts.
const certificateLife = 24 * time.Hour

// TLSCertificate makes a self-signed certificate that carries a key into a TLS handshake, which proves it. Clients and
// relays use the same kind.
func TLSCertificate(key identity.AgentKey, now time.Time) (*tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixMilli()),
		Subject:      pkix.Name{CommonName: key.Public().String()},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(certificateLife),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	signer := key.Signer()
	der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("making the relay's TLS certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: signer}, nil
}

// PeerKey returns the key that the other end has proved in a finished handshake.
func PeerKey(cs *tls.ConnectionState) (identity.AgentPublic, error) { return api.ClientAgent(cs) }
