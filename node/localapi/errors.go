// SPDX-License-Identifier: Apache-2.0

package localapi

import "net/http"

// Codes of errors. They are stable: programs may rely on them.
const (
	CodeUsage          = "USAGE"           // the command line or the request is wrong
	CodeInternal       = "INTERNAL"        // a defect, or the system failed
	CodeNotRunning     = "NOT_RUNNING"     // no daemon answers
	CodeNotUp          = "NOT_UP"          // the daemon has no network that is up
	CodeForbidden      = "FORBIDDEN"       // the caller may not
	CodeNotFound       = "NOT_FOUND"       // no such agent, or not one that may be seen
	CodeNotTrusted     = "NOT_TRUSTED"     // a consent is missing
	CodeNameTaken      = "NAME_TAKEN"      // with a suggestion
	CodeNameInvalid    = "NAME_INVALID"    //
	CodeConflict       = "CONFLICT"        // it contradicts what is there already
	CodeInviteInvalid  = "INVITE_INVALID"  // cut, mistyped, or not for this program
	CodeInviteExpired  = "INVITE_EXPIRED"  //
	CodeInviteUsed     = "INVITE_USED"     // no use is left
	CodeInviteRevoked  = "INVITE_REVOKED"  //
	CodeUnavailable    = "UNAVAILABLE"     // the coordinator can't be reached
	CodeOffline        = "OFFLINE"         // the peer doesn't answer
	CodeNoRelay        = "NO_RELAY"        // no relay forwards for this node: peers behind NATs may be out of reach
	CodeTimeout        = "TIMEOUT"         //
	CodeRefused        = "REFUSED"         // the peer is there, and refuses the connection: nothing listens on the port
	CodeKeyMismatch    = "KEY_MISMATCH"    // a known name, or the coordinator, shows another key
	CodeRevoked        = "REVOKED"         // this agent, or the peer, was revoked
	CodeStateDamaged   = "STATE_DAMAGED"   // a file of the state folder can't be read; it is left as it is
	CodeStateVersion   = "STATE_VERSION"   // a newer pilot wrote it
	CodeStateLocked    = "STATE_LOCKED"    // another daemon uses the state folder
	CodeKeyStore       = "KEY_STORE"       // a sealed key can't be opened here, or none can be sealed
	CodeInsecurePath   = "INSECURE_PATH"   // somebody else could have put the socket or folder there
	CodeNoTUN          = "NO_TUN"          // the virtual interface can't be made
	CodeNoNamespace    = "NO_NAMESPACE"    // this user may not make the namespaces of a sandbox
	CodeUnsupported    = "UNSUPPORTED"     // this system has no such thing
	CodePermission     = "PERMISSION"      // root, or the group pilot, is needed
	CodePortTaken      = "PORT_TAKEN"      // a port that is to be listened on is in use
	CodeVersionDiffers = "VERSION_DIFFERS" // CLI and daemon don't understand each other
	CodeRateLimited    = "RATE_LIMITED"    //
	CodeUnfenced       = "UNFENCED"        // others can send to this host's agent past the tunnel: a problem in the status, no failure
	CodeCoordinator    = "COORDINATOR"     // the coordinator refused, see the message
)

// Error is a failure as people and programs meet it: what happened, and what to do next.
type Error struct {
	Code       string `json:"code"`
	Message    string `json:"message"`
	Hint       string `json:"hint,omitempty"`
	Suggestion string `json:"suggestion,omitempty"` // a name that is free
}

// Error returns the message.
func (e *Error) Error() string { return e.Message }

// Exit statuses of the CLI.
const (
	ExitOK          = 0
	ExitFailure     = 1 // anything that has no status of its own
	ExitUsage       = 2 // the command line is wrong
	ExitNotRunning  = 3 // the daemon, or the network, is not up
	ExitForbidden   = 4 // refused: permission, trust, revocation
	ExitNotFound    = 5 // no such agent
	ExitConflict    = 6 // name taken, invite used or expired, port taken
	ExitUnreachable = 7 // coordinator or peer can't be reached, or didn't answer in time
	ExitKeyMismatch = 8 // a key is not the one that was expected: somebody may be in between
	ExitState       = 9 // the state folder is damaged, locked, insecure or newer

	ExitProblems = 10 // pilot doctor found problems
)

// ExitStatus maps a code to the exit status that the CLI ends with.
func ExitStatus(code string) int {
	switch code {
	case "":
		return ExitOK
	case CodeUsage, CodeNameInvalid, CodeInviteInvalid:
		return ExitUsage
	case CodeNotRunning, CodeNotUp:
		return ExitNotRunning
	case CodeForbidden, CodeNotTrusted, CodeRevoked, CodePermission, CodeInviteRevoked, CodeNoNamespace:
		return ExitForbidden
	case CodeNotFound:
		return ExitNotFound
	case CodeNameTaken, CodeConflict, CodeInviteExpired, CodeInviteUsed, CodePortTaken:
		return ExitConflict
	case CodeUnavailable, CodeOffline, CodeNoRelay, CodeTimeout, CodeRefused, CodeRateLimited:
		return ExitUnreachable
	case CodeKeyMismatch:
		return ExitKeyMismatch
	case CodeStateDamaged, CodeStateVersion, CodeStateLocked, CodeInsecurePath, CodeKeyStore:
		return ExitState
	}
	return ExitFailure
}

// status maps a code to the HTTP status of its answer.
func status(code string) int {
	switch code {
	case CodeUsage, CodeNameInvalid, CodeInviteInvalid:
		return http.StatusBadRequest
	case CodeForbidden, CodeNotTrusted, CodeRevoked, CodePermission, CodeInviteRevoked:
		return http.StatusForbidden
	case CodeNotFound:
		return http.StatusNotFound
	case CodeNameTaken, CodeConflict, CodeInviteExpired, CodeInviteUsed, CodePortTaken, CodeNotUp, CodeKeyMismatch:
		return http.StatusConflict
	case CodeRateLimited:
		return http.StatusTooManyRequests
	case CodeUnavailable, CodeOffline, CodeNoRelay, CodeRefused:
		return http.StatusServiceUnavailable
	case CodeTimeout:
		return http.StatusGatewayTimeout
	}
	return http.StatusInternalServerError
}
