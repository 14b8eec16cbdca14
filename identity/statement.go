// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"fmt"
	"math"
	"slices"
	"time"
	"unicode"
	"unicode/utf8"
)

// The largest sizes of signed statements, in bytes. They keep a handshake within two datagrams.
const (
	MaxCertificate     = 768
	MaxTunnelStatement = 256
	MaxConsent         = 1024
	MaxAcceptance      = 256
	MaxRecord          = 1024
	MaxSignal          = 1024
	MaxRevocation      = 512
	MaxRelayStatement  = 1024
	MaxRelayPass       = 256
)

// Largest counts and lengths of fields.
const (
	maxTags      = 12
	maxTag       = 32
	maxReason    = 200
	maxPorts     = 32
	maxEndpoints = 32
	maxRelays    = 4
)

// signed is the part that all statements share: the bytes that were signed.
type signed struct{ raw []byte }

// Raw returns the signed bytes, nil before the statement was signed or opened. They are shared: do not write to them.
func (s signed) Raw() []byte { return s.raw }

// seconds writes a time as whole seconds since 1970; the zero time is 0.
func seconds(t time.Time) uint64 {
	if t.IsZero() || t.Unix() < 0 {
		return 0
	}
	return uint64(t.Unix())
}

func fromSeconds(s uint64) time.Time {
	if s == 0 {
		return time.Time{}
	}
	return time.Unix(int64(min(s, math.MaxInt64)), 0).UTC()
}

// maxTime is the end of the year 9999, the last that all text forms can show.
const maxTime = 253402300799

func checkSpan(notBefore, notAfter uint64) error {
	if notBefore >= notAfter || notAfter > maxTime {
		return fmt.Errorf("%w: valid from %d to %d", ErrField, notBefore, notAfter)
	}
	return nil
}

func validAt(notBefore, notAfter, now time.Time) error {
	switch {
	case now.Before(notBefore):
		return fmt.Errorf("%w: it is valid from %s on", ErrNotYetValid, notBefore.Format(time.RFC3339))
	case !now.Before(notAfter):
		return fmt.Errorf("%w: it was valid until %s", ErrExpired, notAfter.Format(time.RFC3339))
	}
	return nil
}

// checkReason accepts text that is safe to show: UTF-8 of printable characters, on one line, at most 200 bytes.
func checkReason(s string) error {
	if len(s) > maxReason || !utf8.ValidString(s) {
		return fmt.Errorf("%w: a reason is at most %d bytes of UTF-8", ErrField, maxReason)
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return fmt.Errorf("%w: a reason has printable characters only, not %U", ErrField, r)
		}
	}
	return nil
}

// ValidateTag reports with ErrField why s can't be a tag: 1 to 32 of a-z, 0-9, '-', '.', ':'.
func ValidateTag(s string) error { return checkWord("tag", s, maxTag) }

// ValidateJurisdiction reports with ErrField why s can't be a jurisdiction: empty or up to 32 of a-z, 0-9, '-', '.', ':'.
func ValidateJurisdiction(s string) error {
	if s == "" {
		return nil
	}
	return checkWord("jurisdiction", s, maxTag)
}

func checkWord(what, s string, limit int) error {
	if len(s) == 0 || len(s) > limit {
		return fmt.Errorf("%w: a %s has 1 to %d characters", ErrField, what, limit)
	}
	for i := range len(s) {
		c := s[i]
		if ('a' > c || c > 'z') && ('0' > c || c > '9') && c != '-' && c != '.' && c != ':' {
			return fmt.Errorf("%w: the %s %q has a character other than a-z, 0-9, '-', '.', ':'", ErrField, what, s)
		}
	}
	return nil
}

func checkTags(tags []string) error {
	if len(tags) > maxTags {
		return fmt.Errorf("%w: %d tags of at most %d", ErrField, len(tags), maxTags)
	}
	for i, t := range tags {
		if err := ValidateTag(t); err != nil {
			return err
		}
		if i > 0 && tags[i-1] >= t {
			return fmt.Errorf("%w: tags are sorted and differ", ErrField)
		}
	}
	return nil
}

// sortedTags is the form that a certificate wants. It does not write to tags.
func sortedTags(tags []string) []string {
	sorted := slices.Sorted(slices.Values(tags))
	return slices.Compact(sorted)
}
