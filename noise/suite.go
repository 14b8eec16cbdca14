// SPDX-License-Identifier: Apache-2.0

package noise

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"io"

	flynn "github.com/flynn/noise"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/noise/aesgcm"
)

// Domain tags. Each key and hash of this package is made under its own, so that none can stand for another.
const (
	prologueTag  = "pilot noise v1"
	pskTag       = "pilot noise v1 psk ml-kem-768"
	mac1Tag      = "pilot noise v1 mac1"
	cookieTag    = "pilot noise v1 cookie"
	pskSize      = 32
	pskPlacement = 2
)

// suite is a cipher suite on the wire; exactly one bit of identity.Suites.
type suite uint8

const (
	suiteChaCha = suite(identity.SuiteChaCha)
	suiteAES    = suite(identity.SuiteAES)
)

func (s suite) known() bool { return s == suiteChaCha || s == suiteAES }

// in reports whether a signed statement offers the suite.
func (s suite) in(offered identity.Suites) bool { return identity.Suites(s)&offered != 0 }

// flynn returns the suite's functions: Noise_IKpsk2_25519_AESGCM_SHA256 or Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s.
func (s suite) flynn() flynn.CipherSuite {
	if s == suiteAES {
		return flynn.NewCipherSuite(flynn.DH25519, flynn.CipherAESGCM, flynn.HashSHA256)
	}
	return flynn.NewCipherSuite(flynn.DH25519, flynn.CipherChaChaPoly, flynn.HashBLAKE2s)
}

// aead takes the key out of a finished cipher state. Noise's own Encrypt counts nonces in order and allocates,
// neither of which suits datagrams.
func (s suite) aead(state *flynn.CipherState) (cipher.AEAD, error) {
	key := state.UnsafeKey()
	defer clear(key[:])
	if s == suiteAES {
		return aesgcm.New(key[:])
	}
	return chacha20poly1305.New(key[:])
}

// prologue is what both sides must agree on before the first byte.
func prologue(s suite, network identity.AuthorityPublic, responder identity.AgentPublic) []byte {
	p := append([]byte(prologueTag), Version, byte(s))
	p = append(p, network[:]...)
	return append(p, responder[:]...)
}

// handshake starts a Noise state. remote is nil at the responder. The psk is set later, before message 2.
func handshake(s suite, rand io.Reader, prologue []byte, static flynn.DHKey, remote []byte) (*flynn.HandshakeState, error) {
	return flynn.NewHandshakeState(flynn.Config{
		CipherSuite: s.flynn(), Random: rand, Pattern: flynn.HandshakeIK, Initiator: remote != nil,
		Prologue: prologue, PresharedKeyPlacement: pskPlacement, StaticKeypair: static, PeerStatic: remote,
	})
}

// psk derives the pre-shared key from the ML-KEM secret and from the exchange that made it.
func psk(shared, kemKey, kemText []byte) ([]byte, error) {
	h := sha256.New()
	h.Write(kemKey)
	h.Write(kemText)
	return hkdf.Key(sha256.New, shared, h.Sum(nil), pskTag, pskSize)
}

// keyPair converts a tunnel key for Noise. The caller clears Private when done.
func keyPair(k identity.TunnelKey) flynn.DHKey {
	private, public := k.Bytes(), k.Public()
	return flynn.DHKey{Private: private[:], Public: public[:]}
}
