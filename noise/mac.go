// SPDX-License-Identifier: Apache-2.0

package noise

import (
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"time"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/pilot-protocol/pilot/identity"
)

// cookieLifetime is how long an initiator uses a cookie. The responder makes a new secret as often, and honours the
// one before.
const cookieLifetime = 2 * time.Minute

// labelKey is BLAKE2s-256(label ‖ tunnel key).
func labelKey(label string, tunnel identity.TunnelPublic) [keySize]byte {
	return blake2s.Sum256(append([]byte(label), tunnel[:]...))
}

// digest is what both MACs are taken of. The long input is hashed once, and then a short one per candidate key: a
// port with many agents costs little more than a port with one.
func digest(b []byte) [blake2s.Size]byte { return blake2s.Sum256(b) }

// mac is the first 16 bytes of BLAKE2s-256(key ‖ digest); key has 16 or 32 bytes, fixed for each use. BLAKE2s has no
// length extension, so the key in front makes a MAC of it; with a key of 32 bytes that is a single block.
func mac(key []byte, digest [blake2s.Size]byte) [macSize]byte {
	var block [2 * keySize]byte
	n := copy(block[:], key)
	n += copy(block[n:], digest[:])
	sum := blake2s.Sum256(block[:n])
	return [macSize]byte(sum[:])
}

func equal(a, b []byte) bool { return subtle.ConstantTimeCompare(a, b) == 1 }

// appendMACs ends a fragment that starts at dst[start:]. cookie is nil for none: mac2 is zero then.
func appendMACs(dst []byte, start int, key, cookie []byte) []byte {
	mac1 := mac(key, digest(dst[start:]))
	dst = append(dst, mac1[:]...)
	var mac2 [macSize]byte
	if cookie != nil {
		mac2 = mac(cookie, digest(dst[start:]))
	}
	return append(dst, mac2[:]...)
}

// cookies gives each source a cookie that only somebody who receives there can know. Not safe for concurrent use.
type cookies struct {
	rand              io.Reader
	secret, former    [keySize]byte
	made              time.Time
	current, previous bool // which of the two secrets is set
}

// turn makes a new secret when the present one is too old.
func (c *cookies) turn(now time.Time) error {
	age := now.Sub(c.made)
	if c.current && age >= 0 && age < cookieLifetime {
		return nil
	}
	var secret [keySize]byte
	if _, err := io.ReadFull(c.rand, secret[:]); err != nil {
		return fmt.Errorf("noise: cookie secret: %w", err)
	}
	// A secret older than two lifetimes must not live on because nobody asked in between.
	c.former, c.previous = c.secret, c.current && age >= 0 && age < 2*cookieLifetime
	c.secret, c.current, c.made = secret, true, now
	return nil
}

func cookieFor(secret [keySize]byte, from netip.AddrPort) [macSize]byte {
	ip := from.Addr().As16()
	b := binary.BigEndian.AppendUint16(ip[:], from.Port())
	return mac(secret[:], digest(b))
}

// proves reports whether the fragment's mac2 was made with a cookie that we gave to its source. turn first.
func (c *cookies) proves(f *fragment, from netip.AddrPort) bool {
	sum := digest(f.proved)
	cookie := cookieFor(c.secret, from)
	want := mac(cookie[:], sum)
	if equal(want[:], f.mac2) {
		return true
	}
	if !c.previous {
		return false
	}
	cookie = cookieFor(c.former, from)
	want = mac(cookie[:], sum)
	return equal(want[:], f.mac2)
}

// appendReply appends a cookie reply to the fragment. turn first.
func (c *cookies) appendReply(dst []byte, f *fragment, from netip.AddrPort, key [keySize]byte) ([]byte, error) {
	var nonce [chacha20poly1305.NonceSizeX]byte
	if _, err := io.ReadFull(c.rand, nonce[:]); err != nil {
		return dst, fmt.Errorf("noise: cookie nonce: %w", err)
	}
	aead, err := cookieAEAD(key)
	if err != nil {
		return dst, err
	}
	cookie := cookieFor(c.secret, from)
	dst = append(dst, typeCookie, Version, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, f.sender)
	dst = append(dst, nonce[:]...)
	return aead.Seal(dst, nonce[:], cookie[:], f.mac1), nil
}

// openCookie returns the cookie of a reply to a fragment that had mac1.
func openCookie(reply []byte, key [keySize]byte, mac1 []byte) (cookie [macSize]byte, err error) {
	aead, err := cookieAEAD(key)
	if err != nil {
		return cookie, err
	}
	plain, err := aead.Open(nil, reply[8:32], reply[32:], mac1)
	if err != nil {
		return cookie, ErrAuth
	}
	copy(cookie[:], plain)
	return cookie, nil
}

func cookieAEAD(key [keySize]byte) (cipher.AEAD, error) {
	aead, err := chacha20poly1305.NewX(key[:])
	if err != nil {
		return nil, fmt.Errorf("noise: cookie: %w", err)
	}
	return aead, nil
}
