// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"crypto/ed25519"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// codec encodes by RFC 8949, section 4.2.1, and refuses what another encoder could have written differently.
type codec struct {
	enc cbor.EncMode
	dec cbor.DecMode
}

func newCodec() (codec, error) {
	options := cbor.CoreDetEncOptions()
	options.NilContainers = cbor.NilContainerAsEmpty // null, where a list or bytes belong, is not the one encoding
	enc, err := options.EncMode()
	if err != nil {
		return codec{}, err
	}
	dec, err := cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		TagsMd:           cbor.TagsForbidden,
		MaxNestedLevels:  8,
		MaxArrayElements: 64,
		MaxMapPairs:      16,
	}.DecMode()
	return codec{enc: enc, dec: dec}, err
}

// envelope is the outer array of each statement.
type envelope struct {
	_         struct{} `cbor:",toarray"`
	Body      []byte
	Signature []byte
}

// message is what the signature covers. The zero byte ends the tag, so that no tag is the beginning of another message.
func message(domain string, body []byte) []byte {
	m := make([]byte, 0, len(domain)+1+len(body))
	m = append(m, domain...)
	m = append(m, 0)
	return append(m, body...)
}

// seal encodes and signs a statement's fields. limit is the largest size of the whole, in bytes.
func seal(domain string, limit int, key ed25519.PrivateKey, fields any) ([]byte, error) {
	c, err := newCodec()
	if err != nil {
		return nil, err
	}
	body, err := c.enc.Marshal(fields)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEncoding, err)
	}
	raw, err := c.enc.Marshal(envelope{Body: body, Signature: ed25519.Sign(key, message(domain, body))})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEncoding, err)
	}
	if len(raw) > limit {
		return nil, fmt.Errorf("%w: %d bytes of %d", ErrTooLarge, len(raw), limit)
	}
	return raw, nil
}

// unseal decodes a statement into fields, a pointer to its body struct, and returns a check of its signature. The check
// is separate because the key is often named by the body itself.
func unseal(domain string, limit int, raw []byte, fields any) (verify func(key [KeySize]byte) error, err error) {
	if len(raw) > limit {
		return nil, fmt.Errorf("%w: %d bytes of %d", ErrTooLarge, len(raw), limit)
	}
	c, err := newCodec()
	if err != nil {
		return nil, err
	}
	var e envelope
	if err := c.exact(raw, &e); err != nil {
		return nil, err
	}
	if len(e.Signature) != ed25519.SignatureSize {
		return nil, fmt.Errorf("%w: a signature of %d bytes", ErrEncoding, len(e.Signature))
	}
	if err := c.exact(e.Body, fields); err != nil {
		return nil, err
	}
	return func(key [KeySize]byte) error {
		if !ed25519.Verify(key[:], message(domain, e.Body), e.Signature) {
			return ErrSignature
		}
		return nil
	}, nil
}

// exact decodes and then encodes again: only the one deterministic encoding survives.
func (c codec) exact(raw []byte, v any) error {
	if err := c.dec.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("%w: %w", ErrEncoding, err)
	}
	again, err := c.enc.Marshal(v)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrEncoding, err)
	}
	if !bytes.Equal(raw, again) {
		return ErrEncoding
	}
	return nil
}
