// SPDX-License-Identifier: Apache-2.0

// Package identity holds what makes an agent somebody: typed keys, the addresses derived from
// them, and the statements that keys sign (certificates, tunnel keys, consents, acceptances, records,
// revocations).
//
// The package is pure: no I/O, no clock, no state. Randomness and time are arguments. All values are safe for
// concurrent use as long as nobody writes to them.
//
// # Signed statements
//
// A signed statement is the deterministic CBOR (RFC 8949, section 4.2.1) array
//
//	[ body: bstr, signature: bstr .size 64 ]
//
// where body is itself a deterministic CBOR array of the statement's fields, and signature is Ed25519 (RFC 8032) over
//
//	domain tag ‖ 0x00 ‖ body
//
// The domain tag differs for each kind of statement, so that a signature of one kind never passes for another. A decoder
// refuses every encoding but the deterministic one: each statement has one form only, and the bytes that were
// signed are kept beside the decoded value and handed on unchanged.
package identity
