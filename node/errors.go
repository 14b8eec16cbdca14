// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"io/fs"
	"strings"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/overlay"
	"github.com/pilot-protocol/pilot/platform"
	"github.com/pilot-protocol/pilot/tun"
)

func errUsage(message, hint string) error {
	return &localapi.Error{Code: localapi.CodeUsage, Message: message, Hint: hint}
}

func errNotUp() error {
	return &localapi.Error{Code: localapi.CodeNotUp, Message: "no network is up on this host", Hint: "run: pilot up"}
}

// fromCoordinator maps the coordinator's codes to those of the local API; the others become COORDINATOR.
func fromCoordinator(code string) string {
	switch code {
	case api.CodeForbidden:
		return localapi.CodeForbidden
	case api.CodeNotFound:
		return localapi.CodeNotFound
	case api.CodeNameTaken:
		return localapi.CodeNameTaken
	case api.CodeNameInvalid:
		return localapi.CodeNameInvalid
	case api.CodeJoinKeyUnknown:
		return localapi.CodeInviteInvalid
	case api.CodeJoinKeyExpired:
		return localapi.CodeInviteExpired
	case api.CodeJoinKeyUsed:
		return localapi.CodeInviteUsed
	case api.CodeJoinKeyRevoked:
		return localapi.CodeInviteRevoked
	case api.CodeRevoked, api.CodeNotMember:
		return localapi.CodeRevoked
	case api.CodeConflict:
		return localapi.CodeConflict
	case api.CodeRateLimited:
		return localapi.CodeRateLimited
	case api.CodeUnavailable:
		return localapi.CodeUnavailable
	case api.CodeKeyMismatch:
		return localapi.CodeKeyMismatch
	}
	return localapi.CodeCoordinator
}

// Explain turns an error of the parts below, or of a coordinator, into a *localapi.Error where it knows one.
func Explain(err error) error { return explain(err) }

// explain turns an error of the parts below into one that a person can act on.
func explain(err error) error {
	var own *localapi.Error
	var remote *api.Error
	var open *tun.OpenError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &own):
		return own
	case errors.As(err, &remote):
		return &localapi.Error{
			Code: fromCoordinator(remote.Code), Message: strings.TrimPrefix(remote.Error(), remote.Code+": "),
			Hint: remote.Hint, Suggestion: remote.Suggestion,
		}
	case errors.As(err, &open):
		code := localapi.CodeNoTUN
		if errors.Is(err, fs.ErrPermission) {
			code = localapi.CodePermission
		}
		hint := open.Hint
		if noInterface(err) {
			hint = strings.TrimPrefix(hint+"; or do without: pilot up --tun=userspace", "; ")
		}
		return &localapi.Error{Code: code, Message: err.Error(), Hint: hint}
	case errors.Is(err, identity.ErrName):
		return &localapi.Error{Code: localapi.CodeNameInvalid, Message: strings.TrimPrefix(err.Error(), "identity: "),
			Hint: "a name has 1 to 63 characters of a-z, 0-9 and '-'"}
	case errors.Is(err, identity.ErrField), errors.Is(err, identity.ErrTooLarge):
		return errUsage(strings.TrimPrefix(err.Error(), "identity: "), "")
	case errors.Is(err, errKeyMismatch):
		return &localapi.Error{Code: localapi.CodeKeyMismatch, Message: err.Error(),
			Hint: "ask the agent's owner out of band; to accept the new key: pilot trust approve NAME --accept-key KEY"}
	case errors.Is(err, errRevoked):
		return &localapi.Error{Code: localapi.CodeRevoked, Message: err.Error()}
	case errors.Is(err, overlay.ErrOffline):
		return &localapi.Error{Code: localapi.CodeOffline, Message: err.Error(), Hint: "is its node up? pilot status shows when it was last seen"}
	case errors.Is(err, overlay.ErrNotTrusted), errors.Is(err, overlay.ErrUnknown):
		return &localapi.Error{Code: localapi.CodeNotTrusted, Message: err.Error(), Hint: "see: pilot trust ls"}
	case errors.Is(err, platform.ErrSealed):
		return &localapi.Error{Code: localapi.CodeKeyStore, Message: err.Error(),
			Hint: "it opens on the host, and for the user, that sealed it only; otherwise restore an unsealed backup, or move the state folder away and join again with a new invite"}
	case errors.Is(err, platform.ErrNotSealed):
		return &localapi.Error{Code: localapi.CodeKeyStore, Message: err.Error(), Hint: "the keys stay where they are; pilot keys says what is offered"}
	case errors.Is(err, platform.ErrInsecurePath):
		return &localapi.Error{Code: localapi.CodeInsecurePath, Message: err.Error(),
			Hint: "somebody else could have put it there; remove it if you know it"}
	case errors.Is(err, fs.ErrPermission):
		return &localapi.Error{Code: localapi.CodePermission, Message: err.Error(), Hint: "run as root"}
	}
	return err
}
