// SPDX-License-Identifier: Apache-2.0

package ca

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/identity"
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
	if _, err := Load(path, false); !errors.Is(err, ErrMissing) {
		t.Errorf("%v", err)
	}
	key, err := Load(path, true)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Load(path, true)
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
		if _, err := Load(path, true); !errors.Is(err, ErrExposed) {
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
		got, err := Load(path, true)
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
	key, err := Load(path, true)
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
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if key, err := decode(data); err == nil && key.IsZero() {
			t.Error("an empty key without an error")
		}
	})
}
