// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"bytes"
	"encoding/base64"
	"strings"
	"testing"
)

func TestKeychainCommands(t *testing.T) {
	secret := []byte("unmistakable \" secret\n")
	line, err := keychainAdd("/Library/Keychains/System.keychain", "agent.key-abc", secret)
	want := "add-generic-password -U -s pilot -a agent.key-abc -T /usr/bin/security -w " + base64.RawURLEncoding.EncodeToString(secret) + " /Library/Keychains/System.keychain\n"
	if err != nil || string(line) != want {
		t.Errorf("%q, %v", line, err)
	}
	if got := strings.Join(keychainFind("K", "a"), " "); got != "find-generic-password -s pilot -a a -w K" {
		t.Error(got)
	}
	if got := strings.Join(keychainDelete("K", "a"), " "); got != "delete-generic-password -s pilot -a a K" {
		t.Error(got)
	}
	for _, bad := range []string{"", "a b", "a\nb", `a"b`, "a;b", "a$b", "ä"} {
		if line, err := keychainAdd("K", bad, secret); err == nil {
			t.Errorf("%q: %q", bad, line)
		}
	}
	if got, err := keychainSecret([]byte(base64.RawURLEncoding.EncodeToString(secret) + "\n")); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("%q, %v", got, err)
	}
	for _, bad := range []string{"", "\n", "not base64!"} {
		if _, err := keychainSecret([]byte(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
	if bytes.Equal(entropy("agent.key"), entropy("tunnel.key")) || len(entropy("")) != 32 {
		t.Error("labels are not told apart")
	}
}
