// SPDX-License-Identifier: Apache-2.0

package api

import (
	"errors"
	"fmt"
)

// The stable codes of errors.
const (
	CodeBadRequest      = "BAD_REQUEST"
	CodeUnauthenticated = "UNAUTHENTICATED"
	CodeNotMember       = "NOT_MEMBER"
	CodeForbidden       = "FORBIDDEN"
	CodeNotFound        = "NOT_FOUND"
	CodeNameTaken       = "NAME_TAKEN"
	CodeNameInvalid     = "NAME_INVALID"
	CodeJoinKeyUnknown  = "JOIN_KEY_UNKNOWN"
	CodeJoinKeyExpired  = "JOIN_KEY_EXPIRED"
	CodeJoinKeyUsed     = "JOIN_KEY_USED"
	CodeJoinKeyRevoked  = "JOIN_KEY_REVOKED"
	CodeRevoked         = "REVOKED"
	CodeConflict        = "CONFLICT"
	CodeRateLimited     = "RATE_LIMITED"
	CodeInternal        = "INTERNAL"
	CodeUnavailable     = "UNAVAILABLE"  // made by the client: no coordinator can be reached, or the stream broke
	CodeKeyMismatch     = "KEY_MISMATCH" // made by the client: the server's TLS key isn't the authority's
)

// Error is every failure of the protocol. Code is stable; Message and Hint are for people, and not to be trusted more
// than the coordinator is: escape them before a terminal shows them.
type Error struct {
	Code       string `json:"code"`
	Message    string `json:"message"`
	Hint       string `json:"hint,omitempty"`
	Suggestion string `json:"suggestion,omitempty"` // with NAME_TAKEN: a name that was free

	cause error
}

// Error returns the code and the message.
func (e *Error) Error() string {
	if e.cause != nil {
		return fmt.Sprintf("%s: %s: %v", e.Code, e.Message, e.cause)
	}
	return e.Code + ": " + e.Message
}

// Unwrap returns what made the client fail, if anything did beside the coordinator's answer.
func (e *Error) Unwrap() error { return e.cause }

// HasCode reports whether err is or wraps an *Error with the code.
func HasCode(err error, code string) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}

// ErrorBody is the JSON body of an answer with an error.
type ErrorBody struct {
	Error *Error `json:"error"`
}

func unavailable(cause error) *Error {
	return &Error{Code: CodeUnavailable, Message: "no coordinator can be reached", cause: cause,
		Hint: "Check the coordinator's address and that TCP to it is allowed; open sessions go on meanwhile."}
}
