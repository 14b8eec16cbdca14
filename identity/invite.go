// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

const (
	inviteScheme   = "pilot://"
	inviteVersion  = 1
	inviteChecksum = 4
	maxInvite      = 4096
	maxAddresses   = 8
)

// Invite is what a newcomer needs in order to join: whom to ask, whom to believe, and a secret that opens the door. Its
// text form is the scheme "pilot://", then base64url without padding of a deterministic CBOR array followed by the
// first four bytes of its SHA-256, which catch a cut or mistyped invite. The text is a secret while the invite lasts.
type Invite struct {
	NetworkName  string
	Authority    AuthorityPublic
	Coordinators []string // host:port, at most 8
	Key          JoinKey
	Expires      time.Time
	Consent      []byte // the inviter's signed Consent to the join key; empty: no trust comes with it
}

type inviteBody struct {
	_            struct{} `cbor:",toarray"`
	Version      uint8
	NetworkName  string
	Authority    [KeySize]byte
	Coordinators []string
	Seed         [KeySize]byte
	Expires      uint64
	Consent      []byte
}

// Text returns the invite as people pass it on. It is secret: whoever holds it may join.
func (i Invite) Text() (string, error) {
	c, err := newCodec()
	if err != nil {
		return "", err
	}
	body := inviteBody{
		Version: inviteVersion, NetworkName: i.NetworkName, Authority: i.Authority, Coordinators: i.Coordinators,
		Seed: i.Key.Seed(), Expires: seconds(i.Expires), Consent: append([]byte{}, i.Consent...),
	}
	if err := body.check(); err != nil {
		return "", err
	}
	raw, err := c.enc.Marshal(body)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrEncoding, err)
	}
	sum := sha256.Sum256(raw)
	return inviteScheme + base64.RawURLEncoding.EncodeToString(append(raw, sum[:inviteChecksum]...)), nil
}

// ParseInvite reads the text form; white space around it is ignored. It does not look at the time.
func ParseInvite(text string) (Invite, error) {
	encoded, ok := strings.CutPrefix(strings.TrimSpace(text), inviteScheme)
	if !ok {
		return Invite{}, fmt.Errorf("%w: an invite begins with %s", ErrEncoding, inviteScheme)
	}
	if len(encoded) > maxInvite {
		return Invite{}, fmt.Errorf("invite: %w", ErrTooLarge)
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	if err != nil || len(raw) <= inviteChecksum {
		return Invite{}, fmt.Errorf("%w: the invite is cut or mistyped", ErrEncoding)
	}
	raw, check := raw[:len(raw)-inviteChecksum], raw[len(raw)-inviteChecksum:]
	if sum := sha256.Sum256(raw); !bytes.Equal(sum[:inviteChecksum], check) {
		return Invite{}, fmt.Errorf("%w: the invite is cut or mistyped", ErrEncoding)
	}
	c, err := newCodec()
	if err != nil {
		return Invite{}, err
	}
	var body inviteBody
	if err := c.exact(raw, &body); err != nil {
		return Invite{}, fmt.Errorf("invite: %w", err)
	}
	if err := body.check(); err != nil {
		return Invite{}, fmt.Errorf("invite: %w", err)
	}
	return Invite{
		NetworkName: body.NetworkName, Authority: body.Authority, Coordinators: body.Coordinators,
		Key: JoinKeyFromSeed(body.Seed), Expires: fromSeconds(body.Expires), Consent: body.Consent,
	}, nil
}

func (b inviteBody) check() error {
	if b.Version != inviteVersion {
		return fmt.Errorf("%w: invite version %d; this program knows %d", ErrField, b.Version, inviteVersion)
	}
	if err := ValidateNetworkName(b.NetworkName); err != nil {
		return err
	}
	if len(b.Coordinators) == 0 || len(b.Coordinators) > maxAddresses {
		return fmt.Errorf("%w: an invite names 1 to %d coordinators", ErrField, maxAddresses)
	}
	for _, a := range b.Coordinators {
		if err := checkAddress(a); err != nil {
			return err
		}
	}
	if b.Expires > maxTime {
		return fmt.Errorf("%w: an expiry after the year 9999", ErrField)
	}
	if len(b.Consent) > MaxConsent {
		return ErrTooLarge
	}
	return nil
}

// checkAddress accepts host:port with a host of the characters that names and IP addresses have.
func checkAddress(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" || len(s) > 300 {
		return fmt.Errorf("%w: %q is not host:port", ErrField, s)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%w: the port of %q", ErrField, s)
	}
	for _, c := range []byte(host) {
		if ('a' > c || c > 'z') && ('A' > c || c > 'Z') && ('0' > c || c > '9') && !strings.ContainsRune("-.:%_", rune(c)) {
			return fmt.Errorf("%w: the host of %q", ErrField, s)
		}
	}
	return nil
}

// String and GoString keep the join key out of logs; Text is the form to pass on.
func (i Invite) String() string   { return "invite to " + i.NetworkName }
func (i Invite) GoString() string { return i.String() }
