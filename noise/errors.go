// SPDX-License-Identifier: Apache-2.0

package noise

import "errors"

// Every error of this package wraps one of these. None of them damages a Machine or a Session: both go on as if the
// datagram had not come, with the exceptions that are written at the error.
var (
	// ErrMalformed: not a message of this protocol version; wrong length, reserved bits, or fields out of range.
	ErrMalformed = errors.New("noise: malformed message")
	// ErrMAC: a handshake datagram whose mac1 fits no key of ours. Noise from strangers looks like this.
	ErrMAC = errors.New("noise: mac1 fits no local key")
	// ErrCookie: we are under load and the datagram bore no valid mac2. Result.Reply holds the cookie reply.
	ErrCookie = errors.New("noise: under load, cookie demanded")
	// ErrBusy: under load, and the (proved) source sends more than its share. Dropped.
	ErrBusy = errors.New("noise: under load, source over its share")
	// ErrUnknownIndex: an answer or a record for an index that we did not give out, or gave up.
	ErrUnknownIndex = errors.New("noise: unknown receiver index")
	// ErrUnknownKey: no local agent, or none of its tunnel keys, has this name.
	ErrUnknownKey = errors.New("noise: unknown local agent")
	// ErrAuth: the Noise message or the record does not decrypt: changed, truncated, or for another key.
	// For an answer to an initiation the initiation ends; start a new one.
	ErrAuth = errors.New("noise: authentication failed")
	// ErrReplay: a first message that is not newer than the last one of its sender, or a record seen before or
	// too old to tell.
	ErrReplay = errors.New("noise: replayed")
	// ErrSuite: a cipher suite that this side or the other side's signed statement does not offer.
	ErrSuite = errors.New("noise: cipher suite not offered")
	// ErrStatement: the tunnel statement is not signed well, not valid now, or of another network.
	ErrStatement = errors.New("noise: tunnel statement refused")
	// ErrCertificate: the membership certificate is not signed well, not valid now, or of another network.
	ErrCertificate = errors.New("noise: membership certificate refused")
	// ErrKeyMismatch: statement, certificate, Noise static key and wished agent do not all name the same party.
	ErrKeyMismatch = errors.New("noise: keys do not belong to one agent")
	// ErrRefused: Options.Admit said no; its error is wrapped too.
	ErrRefused = errors.New("noise: peer not admitted")
	// ErrIncomplete: a valid fragment of a message, of which others are still to come. Not a fault.
	ErrIncomplete = errors.New("noise: more fragments to come")
	// ErrUnconfirmed: the responder may not send before the first record of the initiator has come.
	ErrUnconfirmed = errors.New("noise: session not confirmed yet")
	// ErrExhausted: the session's counter reached its limit; it can still open records.
	ErrExhausted = errors.New("noise: session counter exhausted")
	// ErrWiped: the session's keys are gone.
	ErrWiped = errors.New("noise: session wiped")
)
