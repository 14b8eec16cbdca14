// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// KeySize is the length of each public key and of each secret seed, in bytes.
const KeySize = 32

// AgentPublic is an agent's identity: an Ed25519 public key. Its text form starts with "agent:".
type AgentPublic [KeySize]byte

// AuthorityPublic is a network's authority: an Ed25519 public key. Its text form starts with "authority:".
type AuthorityPublic [KeySize]byte

// JoinPublic is the public half of a join key, an Ed25519 key whose secret travels in an invite. Its text form starts
// with "join:".
type JoinPublic [KeySize]byte

// TunnelPublic is an X25519 public key (RFC 7748), the Noise static key of an agent. Its text form starts with "tunnel:".
type TunnelPublic [KeySize]byte

const (
	agentPrefix     = "agent:"
	authorityPrefix = "authority:"
	joinPrefix      = "join:"
	tunnelPrefix    = "tunnel:"
)

// IsZero reports whether the key is unset.
func (p AgentPublic) IsZero() bool { return p == AgentPublic{} }

// IsZero reports whether the key is unset.
func (p AuthorityPublic) IsZero() bool { return p == AuthorityPublic{} }

// IsZero reports whether the key is unset.
func (p JoinPublic) IsZero() bool { return p == JoinPublic{} }

// IsZero reports whether the key is unset.
func (p TunnelPublic) IsZero() bool { return p == TunnelPublic{} }

// String is the text form: the prefix, then base64url without padding.
func (p AgentPublic) String() string     { return formatKey(agentPrefix, p[:]) }
func (p AuthorityPublic) String() string { return formatKey(authorityPrefix, p[:]) }
func (p JoinPublic) String() string      { return formatKey(joinPrefix, p[:]) }
func (p TunnelPublic) String() string    { return formatKey(tunnelPrefix, p[:]) }

// MarshalText returns the text form.
func (p AgentPublic) MarshalText() ([]byte, error)     { return []byte(p.String()), nil }
func (p AuthorityPublic) MarshalText() ([]byte, error) { return []byte(p.String()), nil }
func (p JoinPublic) MarshalText() ([]byte, error)      { return []byte(p.String()), nil }
func (p TunnelPublic) MarshalText() ([]byte, error)    { return []byte(p.String()), nil }

// UnmarshalText reads the text form and refuses keys of another type with ErrKey.
func (p *AgentPublic) UnmarshalText(text []byte) error {
	return parseKey(p[:], agentPrefix, string(text))
}

// UnmarshalText reads the text form and refuses keys of another type with ErrKey.
func (p *AuthorityPublic) UnmarshalText(text []byte) error {
	return parseKey(p[:], authorityPrefix, string(text))
}

// UnmarshalText reads the text form and refuses keys of another type with ErrKey.
func (p *JoinPublic) UnmarshalText(text []byte) error {
	return parseKey(p[:], joinPrefix, string(text))
}

// UnmarshalText reads the text form and refuses keys of another type with ErrKey.
func (p *TunnelPublic) UnmarshalText(text []byte) error {
	return parseKey(p[:], tunnelPrefix, string(text))
}

// ParseAgentPublic reads the text form of an agent's key.
func ParseAgentPublic(s string) (p AgentPublic, err error) {
	err = p.UnmarshalText([]byte(s))
	return p, err
}

// ParseJoinPublic reads the text form of a join key's public half.
func ParseJoinPublic(s string) (p JoinPublic, err error) {
	err = p.UnmarshalText([]byte(s))
	return p, err
}

func formatKey(prefix string, key []byte) string {
	return prefix + base64.RawURLEncoding.EncodeToString(key)
}

func parseKey(dst []byte, prefix, s string) error {
	body, ok := strings.CutPrefix(s, prefix)
	if !ok {
		return fmt.Errorf("%w: expected the form %s…", ErrKey, prefix)
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil || len(raw) != KeySize {
		return fmt.Errorf("%w: %s… is followed by 43 characters of base64url", ErrKey, prefix)
	}
	copy(dst, raw)
	return nil
}

// secret is an Ed25519 key pair. It never prints its secret half.
type secret struct{ private ed25519.PrivateKey }

func newSecret(rand io.Reader) (secret, error) {
	var seed [KeySize]byte
	if _, err := io.ReadFull(rand, seed[:]); err != nil {
		return secret{}, fmt.Errorf("identity: read randomness: %w", err)
	}
	return secretFromSeed(seed), nil
}

func secretFromSeed(seed [KeySize]byte) secret {
	return secret{private: ed25519.NewKeyFromSeed(seed[:])}
}

func (s secret) public() (p [KeySize]byte) {
	if s.private != nil {
		copy(p[:], s.private[KeySize:])
	}
	return p
}

// IsZero reports whether the key is unset.
func (s secret) IsZero() bool { return s.private == nil }

// Seed returns the 32 secret bytes from which the key is made again (RFC 8032, section 5.1.5). For storage only.
func (s secret) Seed() (seed [KeySize]byte) {
	if s.private != nil {
		copy(seed[:], s.private.Seed())
	}
	return seed
}

// Signer returns the key for use in TLS certificates. The slice is shared: do not write to it.
func (s secret) Signer() ed25519.PrivateKey { return s.private }

// String, GoString, MarshalText and LogValue keep the secret out of logs, error texts and encodings.
func (secret) String() string               { return redacted }
func (secret) GoString() string             { return redacted }
func (secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
func (secret) LogValue() slog.Value         { return slog.StringValue(redacted) }

const redacted = "[secret key]"

// AgentKey is an agent's secret identity key.
type AgentKey struct{ secret }

// AuthorityKey is a network's secret authority key.
type AuthorityKey struct{ secret }

// JoinKey is the secret in an invite: who holds it may join.
type JoinKey struct{ secret }

// NewAgentKey makes an identity from 32 bytes of rand, which must be a cryptographic source.
func NewAgentKey(rand io.Reader) (AgentKey, error) {
	s, err := newSecret(rand)
	return AgentKey{s}, err
}

// NewAuthorityKey makes an authority from 32 bytes of rand, which must be a cryptographic source.
func NewAuthorityKey(rand io.Reader) (AuthorityKey, error) {
	s, err := newSecret(rand)
	return AuthorityKey{s}, err
}

// NewJoinKey makes a join key from 32 bytes of rand, which must be a cryptographic source.
func NewJoinKey(rand io.Reader) (JoinKey, error) {
	s, err := newSecret(rand)
	return JoinKey{s}, err
}

// AgentKeyFromSeed makes the key again from what Seed returned.
func AgentKeyFromSeed(seed [KeySize]byte) AgentKey { return AgentKey{secretFromSeed(seed)} }

// AuthorityKeyFromSeed makes the key again from what Seed returned.
func AuthorityKeyFromSeed(seed [KeySize]byte) AuthorityKey {
	return AuthorityKey{secretFromSeed(seed)}
}

// JoinKeyFromSeed makes the key again from what Seed returned.
func JoinKeyFromSeed(seed [KeySize]byte) JoinKey { return JoinKey{secretFromSeed(seed)} }

// Public returns the public half.
func (k AgentKey) Public() AgentPublic         { return k.public() }
func (k AuthorityKey) Public() AuthorityPublic { return k.public() }
func (k JoinKey) Public() JoinPublic           { return k.public() }

// TunnelKey is an X25519 secret key, the Noise static key of an agent for about a day.
type TunnelKey struct{ key *ecdh.PrivateKey }

// NewTunnelKey makes a tunnel key from 32 bytes of rand, which must be a cryptographic source.
func NewTunnelKey(rand io.Reader) (TunnelKey, error) {
	var b [KeySize]byte
	if _, err := io.ReadFull(rand, b[:]); err != nil {
		return TunnelKey{}, fmt.Errorf("identity: read randomness: %w", err)
	}
	return TunnelKeyFromBytes(b)
}

// TunnelKeyFromBytes makes the key again from what Bytes returned.
func TunnelKeyFromBytes(b [KeySize]byte) (TunnelKey, error) {
	key, err := ecdh.X25519().NewPrivateKey(b[:])
	if err != nil {
		return TunnelKey{}, fmt.Errorf("%w: %w", ErrKey, err)
	}
	return TunnelKey{key: key}, nil
}

// IsZero reports whether the key is unset.
func (k TunnelKey) IsZero() bool { return k.key == nil }

// Bytes returns the 32 secret bytes, for storage and for the handshake only.
func (k TunnelKey) Bytes() (b [KeySize]byte) {
	if k.key != nil {
		copy(b[:], k.key.Bytes())
	}
	return b
}

// Public returns the public half.
func (k TunnelKey) Public() (p TunnelPublic) {
	if k.key != nil {
		copy(p[:], k.key.PublicKey().Bytes())
	}
	return p
}

// String, GoString, MarshalText and LogValue keep the secret out of logs, error texts and encodings.
func (TunnelKey) String() string               { return redacted }
func (TunnelKey) GoString() string             { return redacted }
func (TunnelKey) MarshalText() ([]byte, error) { return []byte(redacted), nil }
func (TunnelKey) LogValue() slog.Value         { return slog.StringValue(redacted) }
