// SPDX-License-Identifier: Apache-2.0

package identity

import "errors"

// The reasons why a key, a name or a statement is refused. Callers test for them with errors.Is.
var (
	ErrKey         = errors.New("identity: not a valid key")
	ErrSignature   = errors.New("identity: the signature does not match")
	ErrEncoding    = errors.New("identity: the encoding is not the deterministic one")
	ErrField       = errors.New("identity: a field is out of range")
	ErrNetwork     = errors.New("identity: the statement belongs to another network")
	ErrExpired     = errors.New("identity: expired")
	ErrNotYetValid = errors.New("identity: not valid yet")
	ErrName        = errors.New("identity: not a valid name")
	ErrTooLarge    = errors.New("identity: larger than a statement of its kind may be")
	ErrWrongKey    = errors.New("identity: signed by a key that the statement does not name")
)
