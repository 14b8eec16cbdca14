// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
)

// Sealer is the system's own way to keep a secret, so that a copy of the disk doesn't have it. What Seal returns goes into a
// file in the secret's place: the secret sealed, or where the system keeps it.
type Sealer interface {
	// Name is that of the way, in the files too: it never changes.
	Name() string
	// Seal takes a secret for what label names; only the same label opens it.
	Seal(label string, secret []byte) (sealed []byte, err error)
	// Open returns the secret. The error is ErrSealed where this system, or this user, can't.
	Open(label string, sealed []byte) ([]byte, error)
	// Forget removes what Seal left in the system, where it left anything.
	Forget(label string, sealed []byte) error
}

// Sealing finds what this system offers to seal with, or says why there is nothing.
type Sealing func() (Sealer, error)

// Sealed stands in a file in the place of a secret.
type Sealed struct {
	By   string `json:"by"` // Sealer.Name
	Data []byte `json:"data"`
}

// Seal seals a secret, and returns only what was proved to open again. The error is ErrNotSealed.
func Seal(sealing Sealing, label string, secret []byte) (*Sealed, error) {
	sealer, err := sealing()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotSealed, err)
	}
	data, err := sealer.Seal(label, secret)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotSealed, err)
	}
	if again, err := sealer.Open(label, data); err != nil || !bytes.Equal(again, secret) {
		return nil, errors.Join(fmt.Errorf("%w: %s does not open what it sealed", ErrNotSealed, sealer.Name()), err, sealer.Forget(label, data))
	}
	return &Sealed{By: sealer.Name(), Data: data}, nil
}

// Open returns the secret. The error is ErrSealed.
func (s *Sealed) Open(sealing Sealing, label string) ([]byte, error) {
	sealer, err := sealing()
	if err != nil {
		return nil, sealedError(s.By, err)
	}
	if sealer.Name() != s.By {
		return nil, sealedError(s.By, fmt.Errorf("here keys are sealed by %s", sealer.Name()))
	}
	return sealer.Open(label, s.Data)
}

// Forget removes what sealing left in the system.
func (s *Sealed) Forget(sealing Sealing, label string) error {
	sealer, err := sealing()
	if err != nil || sealer.Name() != s.By {
		return err
	}
	return sealer.Forget(label, s.Data)
}

// ErrNotSealed says that a secret could not be sealed.
var ErrNotSealed = errors.New("the key can't be sealed")

// ErrSealed says that a secret can't be opened here: it was sealed on another system, for another user, or by hardware that
// has changed.
var ErrSealed = errors.New("the key can't be opened here")

// The names of the ways to seal.
const (
	SealedBySystemd  = "systemd-creds"
	SealedByKeychain = "keychain"
	SealedByDPAPI    = "dpapi"
)

// maxSealed bounds what a sealer may return, in bytes.
const maxSealed = 64 << 10

// sealed makes an error of ErrSealed.
func sealedError(by string, err error) error { return fmt.Errorf("%w: %s: %w", ErrSealed, by, err) }

// entropy is mixed into what is sealed where the system asks for some: it is no secret, and binds the result to its label.
func entropy(label string) []byte {
	sum := sha256.Sum256([]byte("pilot sealed key v1\x00" + label))
	return sum[:]
}
