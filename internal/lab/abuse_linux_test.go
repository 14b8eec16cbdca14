// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
)

// secret is what must not be found outside of its own file, in each form in which it could be written down.
type secret struct {
	what  string
	file  string // where it may be; empty: nowhere
	forms [][]byte
}

func newSecret(what, file string, raw []byte) secret {
	return secret{what: what, file: file, forms: [][]byte{
		raw, []byte(hex.EncodeToString(raw)), []byte(strings.ToUpper(hex.EncodeToString(raw))),
		// Without the last characters, which padding and what follows may change.
		[]byte(base64.StdEncoding.EncodeToString(raw)[:40]), []byte(base64.URLEncoding.EncodeToString(raw)[:40]),
		[]byte(url.QueryEscape(base64.StdEncoding.EncodeToString(raw)[:40])), []byte(fmt.Sprint(raw)),
	}}
}

func (s secret) in(text []byte) bool {
	for _, form := range s.forms {
		if bytes.Contains(text, form) {
			return true
		}
	}
	return false
}

// Invites, join keys and private keys are in no command line, no environment, no log and no file but the key's own.
func TestAbuse06SecretsAreNowhereElse(t *testing.T) {
	m := openTrio(t)
	planner := found(t, m.a, "planner")
	// The person's own command has the invite as its argument: that one ends at once. The daemon must not have it.
	m.b.Must(deadline(t, time.Minute), "pilot", "up", "--name", "warehouse", planner.Invite)
	open := pilot[localapi.InviteResult](t, m.a, "invite", "--uses", "3")
	join(t, m.a, m.c, "auditor")
	pilot[localapi.TrustEntry](t, m.c, "trust", "warehouse", "--reason", "audit")

	var secrets []secret
	for i, text := range []string{planner.Invite, open.Invite} {
		parsed, err := identity.ParseInvite(text)
		if err != nil {
			t.Fatal(err)
		}
		seed := parsed.Key.Seed()
		secrets = append(secrets, newSecret(fmt.Sprintf("join key %d", i), "", seed[:]),
			secret{what: fmt.Sprintf("invite %d", i), forms: [][]byte{[]byte(strings.TrimPrefix(text, "pilot://"))}})
	}
	for _, h := range m.Hosts() {
		secrets = append(secrets, keyFiles(t, h)...)
	}
	for _, h := range m.Hosts() {
		searchProcesses(t, h, secrets)
		searchFiles(t, h, secrets)
	}
}

// A report on a defect, of daemons that log all they can, has none of the secrets that there are: keys, invites, and those in
// the environment. The search finds one that is put there.
func TestAbuse06BugReport(t *testing.T) {
	m := openTrio(t, "tar")
	const password, token = "unmistakable-Passw0rd", "unmistakable-T0ken"
	var daemons []*Process
	for _, h := range []*Host{m.a, m.b} {
		h.Setenv("HTTPS_PROXY", "http://ada:"+password+"@192.0.2.99:3128")
		h.Setenv("NO_PROXY", "192.0.2.0/24")
		h.Setenv("SECRET_TOKEN", token)
		daemons = append(daemons, h.Start("pilot", "daemon", "--log-level", "debug"))
	}
	Eventually(t, 20*time.Second, func(context.Context) error { // until they answer: status ends with 3 also if no network is up
		for _, h := range []*Host{m.a, m.b} {
			if r := tryPilot(h, "", "status"); !strings.Contains(r.Stdout, `"pid"`) {
				return fmt.Errorf("%v", r)
			}
		}
		return nil
	})
	planner := found(t, m.a, "planner")
	joinBy(t, m.b, "warehouse", planner.Invite)
	tryPilot(m.b, planner.Invite, "up", "-")                         // used already
	tryPilot(m.b, planner.Invite[:len(planner.Invite)-4], "up", "-") // and one that is cut
	m.b.Must(deadline(t, time.Minute), "pilot", "ping", "planner", "--count", "1")

	parsed, err := identity.ParseInvite(planner.Invite)
	if err != nil {
		t.Fatal(err)
	}
	seed := parsed.Key.Seed()
	secrets := []secret{
		newSecret("join key", "", seed[:]), {what: "invite", forms: [][]byte{[]byte(strings.TrimPrefix(planner.Invite, "pilot://")[:60])}},
		{what: "the proxy's password", forms: textForms(password)}, {what: "the environment's token", forms: textForms(token)},
	}
	for _, h := range []*Host{m.a, m.b} {
		secrets = append(secrets, keyFiles(t, h)...)
	}
	for i, h := range []*Host{m.a, m.b} {
		path := filepath.Join(h.Home(), "report.tar.gz")
		for _, redact := range []string{"--redact=false", "--redact"} {
			h.Must(deadline(t, time.Minute), "pilot", "bugreport", redact, "-o", path)
			text := []byte(h.Must(deadline(t, time.Minute), "tar", "-xzOf", path))
			h.Must(deadline(t, time.Minute), "rm", path)
			for _, want := range []string{"session up", "goroutine profile", "pilot_up 1", `"well"`, "There is no private key in it"} {
				if !bytes.Contains(text, []byte(want)) {
					t.Errorf("%s: no %q in the report", h.Name(), want)
				}
			}
			if named := bytes.Contains(text, []byte("warehouse")); named == (redact == "--redact") {
				t.Errorf("%s: with %s the name of the other agent: %v", h.Name(), redact, named)
			}
			for _, s := range secrets {
				if s.in(text) {
					t.Errorf("%s: %s is in the report", h.Name(), s.what)
				}
				if s.in([]byte(daemons[i].Logs())) {
					t.Errorf("%s: %s is in the log", h.Name(), s.what)
				}
				for _, form := range s.forms {
					if !s.in(append(bytes.Clone(text), form...)) {
						t.Errorf("%s would not be found", s.what)
					}
				}
			}
		}
	}
}

// textForms are those of a secret that is text.
func textForms(text string) [][]byte {
	encoded := base64.StdEncoding.EncodeToString([]byte(text))
	return [][]byte{[]byte(text), []byte(hex.EncodeToString([]byte(text))), []byte(encoded[:len(encoded)-4]),
		[]byte(base64.RawURLEncoding.EncodeToString([]byte(text))[:len(encoded)-4]), []byte(url.QueryEscape(text))}
}

// keyFiles reads the private keys of a host: the files of its state folder that are named for it.
func keyFiles(t *testing.T, h *Host) []secret {
	t.Helper()
	var found []secret
	base := h.Path("/var/lib/pilot")
	err := filepath.WalkDir(base, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() || !strings.HasSuffix(path, ".key") {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %s has the mode %v", h.Name(), path, info.Mode())
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		keys := private(keysIn(text))
		if len(keys) == 0 {
			t.Errorf("%s: no key can be made out in %s", h.Name(), path)
		}
		for _, raw := range keys {
			found = append(found, newSecret("key of "+h.Name()+" in "+filepath.Base(path), path, raw))
		}
		return nil
	})
	if err != nil || len(found) == 0 {
		t.Fatalf("%s: no key file that can be understood below %s: %v", h.Name(), base, err)
	}
	return found
}

// private leaves out the public halves of what is there.
func private(keys [][]byte) [][]byte {
	return slices.DeleteFunc(slices.Clone(keys), func(key []byte) bool {
		return slices.ContainsFunc(keys, func(seed []byte) bool {
			return bytes.Equal(ed25519.NewKeyFromSeed(seed)[ed25519.SeedSize:], key)
		})
	})
}

// keysIn finds 32-byte values in a key file: the file itself, or each word of it that is base64 or hex of 32 or 64
// bytes, of which the first 32 are the seed.
func keysIn(text []byte) [][]byte {
	if len(text) == 32 || len(text) == 64 {
		return [][]byte{text[:32]}
	}
	var keys [][]byte
	words := strings.FieldsFunc(string(text), func(r rune) bool { return strings.ContainsRune(" \t\r\n\",:{}[]", r) })
	for _, word := range words {
		for _, decode := range []func(string) ([]byte, error){
			hex.DecodeString, base64.StdEncoding.DecodeString, base64.RawStdEncoding.DecodeString,
			base64.URLEncoding.DecodeString, base64.RawURLEncoding.DecodeString,
		} {
			if raw, err := decode(word); err == nil && (len(raw) == 32 || len(raw) == 64) {
				keys = append(keys, raw[:32])
				break
			}
		}
	}
	return keys
}

func searchProcesses(t *testing.T, h *Host, secrets []secret) {
	t.Helper()
	processes := h.Processes()
	if len(processes) == 0 {
		t.Fatalf("%s: no process to search", h.Name())
	}
	for pid := range processes {
		for _, file := range []string{"cmdline", "environ"} {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range secrets {
				if s.in(text) {
					t.Errorf("%s: %s is in the %s of %s", h.Name(), s.what, file, processes[pid])
				}
			}
		}
	}
}

// searchFiles looks into all that the host's programs can have written.
func searchFiles(t *testing.T, h *Host, secrets []secret) {
	t.Helper()
	searched := 0
	for _, root := range []string{h.Path("/var/lib"), h.Path("/run"), h.Path("/etc"), h.Home(), filepath.Join(h.dir, "log")} {
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			searched++
			for _, s := range secrets {
				if path != s.file && s.in(text) {
					t.Errorf("%s: %s is in %s", h.Name(), s.what, path)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%s: searched %d files for %d secrets", h.Name(), searched, len(secrets))
}

// The search itself must find what it looks for.
func TestAbuse06SearchFindsEachForm(t *testing.T) {
	raw := []byte("0123456789abcdefABCDEF~?>=<;:+-*")
	s := newSecret("key", "", raw)
	for _, text := range []string{
		string(raw), hex.EncodeToString(raw), strings.ToUpper(hex.EncodeToString(raw)), base64.StdEncoding.EncodeToString(raw),
		base64.RawURLEncoding.EncodeToString(raw), url.QueryEscape(base64.StdEncoding.EncodeToString(raw)), fmt.Sprint(raw),
	} {
		if !s.in([]byte(`{"x":"` + text + `"}`)) {
			t.Errorf("not found in %q", text)
		}
		if strings.ContainsAny(text, "%[") {
			continue // no form for a file
		}
		for _, file := range []string{text + "\n", `{"version":1,"seed":"` + text + `"}`} {
			if keys := keysIn([]byte(file)); string(raw) != text && (len(keys) != 1 || !bytes.Equal(keys[0], raw)) {
				t.Errorf("no key made out in %q: %q", file, keys)
			}
		}
	}
	if s.in([]byte("0123456789abcdefABCDEF")) {
		t.Error("found where it is not")
	}
}
