// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"fmt"
	"slices"
)

// reservedNames can't be an agent's: the zone or programs give them a meaning of their own (RFC 6761, RFC 8552, WPAD).
var reservedNames = []string{
	"localhost", "local", "internal", "pilot", "ns", "dns", "wpad", "isatap", "invalid", "example", "test", "onion",
	"arpa", "any", "all", "self", "coordinator", "relay", "authority",
}

// ValidateName reports with ErrName why s can't be the name of an agent. A name is one DNS label (RFC 1123, section
// 2.1) of lower-case ASCII letters, digits and hyphens, at most 63 of them, beginning and ending with a letter or a
// digit, with no "--" in the third and fourth place (RFC 5891, section 4.2.3.1: no disguise by Unicode look-alikes), not
// digits alone, and none of the reserved words.
func ValidateName(s string) error {
	if err := validateLabel(s); err != nil {
		return err
	}
	if slices.Contains(reservedNames, s) {
		return fmt.Errorf("%w: %q is reserved", ErrName, s)
	}
	return nil
}

// ValidateNetworkName is ValidateName for networks, whose names become the zone NAME.internal.
func ValidateNetworkName(s string) error { return validateLabel(s) }

func validateLabel(s string) error {
	if len(s) == 0 || len(s) > 63 {
		return fmt.Errorf("%w: it has %d characters; 1 to 63 are allowed", ErrName, len(s))
	}
	digits := true
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z':
			digits = false
		case '0' <= c && c <= '9':
		case c == '-':
			digits = false
			if i == 0 || i == len(s)-1 {
				return fmt.Errorf("%w: %q begins or ends with a hyphen", ErrName, s)
			}
		default:
			return fmt.Errorf("%w: %q has a character other than a-z, 0-9 and '-'", ErrName, s)
		}
	}
	if digits {
		return fmt.Errorf("%w: %q has digits only", ErrName, s)
	}
	if len(s) >= 4 && s[2:4] == "--" {
		return fmt.Errorf("%w: %q has \"--\" as its third and fourth character", ErrName, s)
	}
	return nil
}
