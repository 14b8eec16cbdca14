// SPDX-License-Identifier: Apache-2.0

package ca

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/platform"
)

func newCA(t *testing.T) *CA {
	t.Helper()
	key, err := identity.NewAuthorityKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(key)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestIssueAndRevoke(t *testing.T) {
	c, now := newCA(t), time.Now()
	agent := identity.AgentPublic{1}
	cert, err := c.Issue(identity.Certificate{Agent: agent, Name: "planner", Tags: []string{"b", "a"}, Jurisdiction: "eu", Serial: 7}, now)
	if err != nil {
		t.Fatal(err)
	}
	got, err := identity.OpenCertificate(cert.Raw(), c.Authority())
	if err != nil || got.Agent != agent || got.Name != "planner" || len(got.Tags) != 2 || got.Jurisdiction != "eu" || got.Serial != 7 {
		t.Errorf("%+v, %v", got, err)
	}
	if got.ValidAt(now) != nil || got.ValidAt(now.Add(Life-time.Second)) != nil || !errors.Is(got.ValidAt(now.Add(Life)), identity.ErrExpired) {
		t.Error("it isn't valid for a day from now")
	}
	pass, err := c.Pass(agent, cert.Serial, now)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := identity.OpenRelayPass(pass.Raw(), c.Authority()); err != nil || p.Agent != agent || p.Serial != cert.Serial ||
		!p.NotBefore.Equal(cert.NotBefore) || !p.NotAfter.Equal(cert.NotAfter) {
		t.Errorf("pass %+v, %v", p, err)
	}
	if _, err := c.Issue(identity.Certificate{Agent: agent, Name: "Not a name"}, now); !errors.Is(err, identity.ErrName) {
		t.Errorf("%v", err)
	}
	rev, err := c.Revoke(agent, 7, "lost", now)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := identity.OpenRevocation(rev.Raw(), c.Authority()); err != nil || got.Serial != 7 || got.Reason != "lost" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := c.Revoke(agent, 7, "two\nlines", now); err == nil {
		t.Error("a reason of two lines was signed")
	}
}

func TestLeafIsTrustedByOrdinaryClients(t *testing.T) {
	c, now := newCA(t), time.Now()
	leaf, err := c.Leaf([]string{"localhost", "192.0.2.1", "2001:db8::1"}, now)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(c.Root())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	for _, name := range []string{"localhost", "192.0.2.1", "2001:db8::1"} {
		if _, err := leaf.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := leaf.Leaf.Verify(x509.VerifyOptions{DNSName: "evil.example", Roots: roots}); err == nil {
		t.Error("it holds for any name")
	}
	if leaf.Leaf.NotAfter.Sub(now) > Life {
		t.Error("it lasts longer than a day")
	}
	again, err := New(c.key)
	if err != nil || !bytes.Equal(again.Root(), c.Root()) {
		t.Error("two coordinators have different roots")
	}
}

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "authority.key")
	if _, err := Load(path, false, nil); !errors.Is(err, ErrMissing) {
		t.Errorf("%v", err)
	}
	key, err := Load(path, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Load(path, true, nil)
	if err != nil || again.Public() != key.Public() {
		t.Errorf("another key: %v", err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS != "windows" {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
		if err := os.Chmod(path, 0o640); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(path, true, nil); !errors.Is(err, ErrExposed) {
			t.Errorf("%v", err)
		}
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i := range good { // each kind of damage is an error or changes nothing
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := Load(path, true, nil)
		if err == nil && got.Public() != key.Public() {
			t.Fatalf("byte %d changed: another key", i)
		}
		if err != nil && !errors.Is(err, ErrDamaged) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
		if after, _ := os.ReadFile(path); !bytes.Equal(after, bad) {
			t.Fatalf("byte %d changed: the file was written", i)
		}
	}
	for n := range len(good) - 1 {
		if _, err := decode(good[:n]); err == nil {
			t.Errorf("%d bytes of %d are taken for a key", n, len(good))
		}
	}
}

func TestAbuse06KeyIsNotShown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "authority.key")
	key, err := Load(path, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	seed := key.Seed()
	secret := string(data[bytes.Index(data, []byte(`"seed": "`))+9:])[:20]
	c, err := New(key)
	if err != nil {
		t.Fatal(err)
	}
	_, damaged := decode(append(data, 'x'))
	for _, s := range []string{fmt.Sprintf("%v %+v %#v", key, key, key), fmt.Sprintf("%v %+v", c, c), fmt.Sprint(damaged)} {
		if strings.Contains(s, secret) || strings.Contains(s, string(seed[:])) {
			t.Errorf("the key is shown: %s", s)
		}
	}
}

func FuzzKeyFile(f *testing.F) {
	f.Add([]byte(`{"version":1,"public":"authority:AAAA","seed":""}`))
	f.Add([]byte(`{"version":2,"public":"authority:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","sealed":{"by":"x","data":"AAAA"}}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := decode(data)
		if err != nil {
			return
		}
		if key, err := file.key("f", noSealing); err == nil && key.IsZero() {
			t.Error("an empty key without an error")
		}
	})
}

func noSealing() (platform.Sealer, error) { return nil, platform.ErrUnsupported }

// turned seals by turning bits, with the label in front.
type turned struct{ broken bool }

func (turned) Name() string { return "turned" }
func (s turned) Seal(label string, secret []byte) ([]byte, error) {
	if s.broken {
		return nil, errors.New("broken")
	}
	return append([]byte(label), turn(secret)...), nil
}

func (turned) Open(label string, sealed []byte) ([]byte, error) {
	rest, ok := bytes.CutPrefix(sealed, []byte(label))
	if !ok {
		return nil, platform.ErrSealed
	}
	return turn(rest), nil
}
func (turned) Forget(string, []byte) error { return nil }

func turn(b []byte) []byte {
	out := bytes.Clone(b)
	for i := range out {
		out[i] ^= 0xff
	}
	return out
}

func TestSealedKeyFile(t *testing.T) {
	sealing := func() (platform.Sealer, error) { return turned{}, nil }
	path := filepath.Join(t.TempDir(), "authority.key")
	if err := Move(path, true, sealing); err != nil {
		t.Errorf("without a file: %v", err)
	}
	key, err := Load(path, true, noSealing)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	broken := func() (platform.Sealer, error) { return turned{broken: true}, nil }
	for name, s := range map[string]platform.Sealing{"nothing to seal with": noSealing, "it fails": broken} {
		if err := Move(path, true, s); !errors.Is(err, platform.ErrNotSealed) {
			t.Errorf("%s: %v", name, err)
		}
		if now, _ := os.ReadFile(path); !bytes.Equal(now, plain) {
			t.Errorf("%s: the file changed", name)
		}
	}
	for range 2 { // the second has nothing to do
		if err := Move(path, true, sealing); err != nil {
			t.Fatal(err)
		}
	}
	sealed, err := os.ReadFile(path)
	seed := key.Seed()
	if err != nil || bytes.Contains(sealed, []byte("seed")) || bytes.Contains(sealed, []byte(base64.StdEncoding.EncodeToString(seed[:])[:40])) {
		t.Errorf("%v: %s", err, sealed)
	}
	if got, err := Load(path, true, sealing); err != nil || got.Public() != key.Public() {
		t.Errorf("%v", err)
	}
	// Elsewhere it is of no use, and never replaced.
	if _, err := Load(path, true, noSealing); !errors.Is(err, platform.ErrSealed) {
		t.Errorf("%v", err)
	}
	if now, _ := os.ReadFile(path); !bytes.Equal(now, sealed) {
		t.Error("the file changed")
	}
	if err := Move(path, false, sealing); err != nil {
		t.Fatal(err)
	}
	if now, _ := os.ReadFile(path); !bytes.Equal(now, plain) {
		t.Errorf("it did not come back as it was: %s", now)
	}
}
