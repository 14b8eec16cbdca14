// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// fakeCreds is a systemd-creds in PATH: it writes its arguments and environment down, and turns the letters of what it gets.
const fakeCreds = `#!/bin/sh
{ echo "$0 $*"; env; } >>"$(dirname "$0")/seen"
case "$*" in
encrypt*) printf '%s:' "$2"; tr 'a-zA-Z0-9' 'n-za-mN-ZA-M5-90-4' ;;
decrypt*) read -r all; case "$all" in "$2":*) printf %s "${all#*:}" | tr 'n-za-mN-ZA-M5-90-4' 'a-zA-Z0-9' ;; *) echo "Embedded credential name does not match." >&2; exit 1 ;; esac ;;
esac
`

func TestSealByTheTool(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("another user needs systemd's socket")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, credsTool), []byte(fakeCreds), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("SECRET_TOKEN", "hunter2")
	checkSealer(t)
	seen, err := os.ReadFile(filepath.Join(dir, "seen"))
	if err != nil || !strings.Contains(string(seen), "encrypt --name=agent.key --with-key=auto --tpm2-pcrs= - -") {
		t.Errorf("%v: %s", err, seen)
	}
	if strings.Contains(string(seen), "unmistakable") || strings.Contains(string(seen), "hunter2") {
		t.Errorf("a secret is in arguments or environment: %s", seen)
	}
}

// With the real one, where there is one and its key may be made.
func TestSealBySystemd(t *testing.T) {
	if _, err := exec.LookPath(credsTool); err != nil || os.Geteuid() != 0 {
		t.Skip("no systemd-creds, or not root")
	}
	const hostKey = "/var/lib/systemd/credential.secret"
	if _, err := os.Stat(hostKey); errors.Is(err, os.ErrNotExist) {
		t.Cleanup(func() { os.Remove(hostKey) })
	}
	if out, err := exec.Command(credsTool, "setup").CombinedOutput(); err != nil {
		t.Skipf("systemd-creds can have no key here: %s", out)
	}
	checkSealer(t)
}

func checkSealer(t *testing.T) {
	t.Helper()
	s, err := SystemSealer()
	if err != nil {
		t.Fatal(err)
	}
	secret := []byte("unmistakable secret 0123456789")
	sealed, err := s.Seal("agent.key", secret)
	if err != nil || bytes.Contains(sealed, secret) || s.Name() != SealedBySystemd {
		t.Fatalf("%q, %v", sealed, err)
	}
	if got, err := s.Open("agent.key", sealed); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := s.Open("tunnel.key", sealed); !errors.Is(err, ErrSealed) {
		t.Errorf("by another label: %q, %v", got, err)
	}
	if got, err := s.Open("agent.key", []byte("nonsense")); !errors.Is(err, ErrSealed) {
		t.Errorf("nonsense: %q, %v", got, err)
	}
	if err := s.Forget("agent.key", sealed); err != nil {
		t.Error(err)
	}
}

func TestNoSealer(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if s, err := SystemSealer(); s != nil || !errors.Is(err, ErrUnsupported) {
		t.Errorf("%v, %v", s, err)
	}
}
