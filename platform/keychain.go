// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// keychainService is what the items in the Keychain are filed under.
const keychainService = "pilot"

// keychainAdd is the line for "security -i", which takes commands from standard input, where nobody sees them.
func keychainAdd(keychain, account string, secret []byte) ([]byte, error) {
	if !keychainWord(account) || !keychainWord(keychain) {
		return nil, fmt.Errorf("keychain: a name that can't be one: %q", account)
	}
	line := fmt.Sprintf("add-generic-password -U -s %s -a %s -T /usr/bin/security -w %s %s\n",
		keychainService, account, base64.RawURLEncoding.EncodeToString(secret), keychain)
	return []byte(line), nil
}

// keychainFind and keychainDelete are arguments of security(1): there is no secret in them.
func keychainFind(keychain, account string) []string {
	return []string{"find-generic-password", "-s", keychainService, "-a", account, "-w", keychain}
}

func keychainDelete(keychain, account string) []string {
	return []string{"delete-generic-password", "-s", keychainService, "-a", account, keychain}
}

// keychainSecret reads what "find-generic-password -w" prints.
func keychainSecret(out []byte) ([]byte, error) {
	secret, err := base64.RawURLEncoding.DecodeString(string(bytes.TrimSpace(out)))
	if err != nil || len(secret) == 0 {
		return nil, errors.New("the item is not what was put there")
	}
	return secret, nil
}

// keychainWord says whether a text is one word for security's own parser, without quotes.
func keychainWord(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-._/", r))
	})
}
