// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/identity"
)

// plain is an HTTP client as any program has it, which trusts the authority's file.
func (p *place) plain(t testing.TB, change func(*tls.Config)) *http.Client {
	t.Helper()
	file := must(os.ReadFile(filepath.Join(p.options.StateDir, rootFile)))
	block, _ := pem.Decode(file)
	roots := x509.NewCertPool()
	roots.AddCert(must(x509.ParseCertificate(block.Bytes)))
	conf := &tls.Config{RootCAs: roots, ServerName: "localhost"}
	if change != nil {
		change(conf)
	}
	tr := &http.Transport{TLSClientConfig: conf}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// selfSigned makes a client certificate as a program other than pilot would.
func selfSigned(public, private any) tls.Certificate {
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1, 0)}
	der := must(x509.CreateCertificate(rand.Reader, template, template, public, private))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}
}

func (p *place) do(t testing.TB, c *http.Client, method, path, body string) (int, api.ErrorBody) {
	t.Helper()
	req := must(http.NewRequestWithContext(t.Context(), method, "https://"+p.Addr().String()+path, strings.NewReader(body)))
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var e api.ErrorBody
	data := must(io.ReadAll(resp.Body))
	if err := json.Unmarshal(data, &e); err != nil {
		t.Fatalf("%s %s: %q isn't JSON", method, path, data)
	}
	if e.Error == nil {
		e.Error = &api.Error{}
	}
	return resp.StatusCode, e
}

func TestWithOrdinaryClients(t *testing.T) {
	p := start(t, Options{})
	nobody := p.plain(t, nil)
	if status, _ := p.do(t, nobody, "GET", "/v1/network", ""); status != 200 {
		t.Errorf("network: %d", status)
	}
	for _, path := range []string{
		"POST /v1/join", "POST /v1/renew", "PUT /v1/record", "GET /v1/agents", "GET /v1/agents/x", "POST /v1/consents", "POST /v1/invites",
		"GET /v1/invites", "DELETE /v1/invites/x", "POST /v1/revocations", "GET /v1/watch",
	} {
		method, path, _ := strings.Cut(path, " ")
		if status, e := p.do(t, nobody, method, path, "{}"); status != 401 || e.Error.Code != api.CodeUnauthenticated {
			t.Errorf("%s %s: %d %+v", method, path, status, e.Error)
		}
	}
	for _, path := range []string{"GET /", "GET /v2/network", "POST /v1/network", "GET /v1/join"} {
		method, path, _ := strings.Cut(path, " ")
		if status, e := p.do(t, nobody, method, path, ""); status != 404 || e.Error.Code != api.CodeNotFound {
			t.Errorf("%s %s: %d %+v", method, path, status, e.Error)
		}
	}
	ec := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	cert := selfSigned(ec.Public(), ec)
	other := p.plain(t, func(c *tls.Config) { c.Certificates = []tls.Certificate{cert} })
	if status, e := p.do(t, other, "GET", "/v1/agents", ""); status != 401 || e.Error.Code != api.CodeUnauthenticated {
		t.Errorf("a P-256 key: %d %+v", status, e.Error)
	}
	old := p.plain(t, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 })
	if _, err := old.Get("https://" + p.Addr().String() + "/v1/network"); err == nil {
		t.Error("TLS 1.2 was accepted")
	}

	// A member that uses its key with a certificate of its own making, whatever times it has.
	key := must(identity.NewAgentKey(rand.Reader))
	a := p.agentWith(t, key)
	_, err := a.Join(t.Context(), a.request("planner", p.invite(t, nil)))
	noError(t, err)
	own := selfSigned(key.Signer().Public(), key.Signer())
	member := p.plain(t, func(c *tls.Config) { c.Certificates = []tls.Certificate{own} })
	if status, e := p.do(t, member, "GET", "/v1/agents", ""); status != 200 {
		t.Errorf("a member: %d %+v", status, e.Error)
	}
	resp, err := member.Get("https://" + p.Addr().String() + "/v1/watch")
	noError(t, err)
	lines := bufio.NewReader(resp.Body)
	if line, err := lines.ReadString('\n'); line != `{"type":"relays"}`+"\n" || err != nil {
		t.Errorf("%q, %v", line, err)
	}
	line, err := lines.ReadString('\n')
	if !strings.Contains(line, `"synced"`) || !strings.Contains(line, `"127.0.0.1"`) || err != nil {
		t.Errorf("%q, %v", line, err)
	}
	resp.Body.Close()
}

func TestAbuse24RequestsThatAreTooMuch(t *testing.T) {
	p := start(t, Options{})
	a := p.enter(t, "a1")
	own := selfSigned(a.key.Signer().Public(), a.key.Signer())
	member := p.plain(t, func(c *tls.Config) { c.Certificates = []tls.Certificate{own} })
	for name, body := range map[string]string{
		"large":         `{"consent":"` + strings.Repeat("A", api.MaxRequest) + `"}`,
		"large nothing": strings.Repeat(" ", api.MaxRequest+1),
		"empty":         "", "null": "null", "list": "[]", "junk": "{]", "two": "{}{}", "wrong type": `{"consent":5}`, "not base64": `{"consent":"*"}`,
		"deep": strings.Repeat(`{"a":`, 20_000),
	} {
		for _, path := range []string{"POST /v1/consents", "POST /v1/join"} {
			method, path, _ := strings.Cut(path, " ")
			status, e := p.do(t, member, method, path, body)
			if status != 400 || e.Error.Code != api.CodeBadRequest {
				t.Errorf("%s to %s: %d %+v", name, path, status, e.Error)
			}
		}
	}
	req := must(http.NewRequest("GET", "https://"+p.Addr().String()+"/v1/network", nil))
	req.Header.Set("X-Much", strings.Repeat("x", 1<<20))
	if resp, err := member.Do(req); err == nil {
		if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("large headers: %d", resp.StatusCode)
		}
		resp.Body.Close()
	}

	t.Run("streams", func(t *testing.T) {
		for range maxStreams {
			a.listen(t).synced()
		}
		for _, err := range a.Watch(t.Context()) {
			wantCode(t, err, api.CodeRateLimited)
		}
	})
	t.Run("calls", func(t *testing.T) {
		b := p.enter(t, "b1")
		var err error
		for range 10 * agentBurst {
			if _, err = b.Agents(t.Context()); err != nil {
				break
			}
		}
		wantCode(t, err, api.CodeRateLimited)
		_, err = p.enter(t, "c1").Agents(t.Context()) // others go on
		noError(t, err)
	})
}

func TestLimiter(t *testing.T) {
	l := newLimiter[int](1, 3)
	now := time.Now()
	for i, want := range []bool{true, true, true, false, false} {
		if l.allow(1, now) != want {
			t.Errorf("attempt %d", i)
		}
	}
	if !l.allow(2, now) {
		t.Error("another key is held back")
	}
	if !l.allow(1, now.Add(time.Second)) || l.allow(1, now.Add(time.Second)) {
		t.Error("one token per second")
	}
	for i := range 2 * maxKeys {
		l.allow(i+10, now)
	}
	if len(l.keys) != maxKeys {
		t.Errorf("%d keys are remembered", len(l.keys))
	}
	if !l.allow(-1, now.Add(time.Minute)) || len(l.keys) != 1 {
		t.Errorf("idle keys aren't forgotten: %d", len(l.keys))
	}
	for in, want := range map[string]string{"192.0.2.7": "192.0.2.7", "2001:db8::1:2:3:4": "2001:db8::", "2001:db8:0:0:9::": "2001:db8::"} {
		if got := limitKey(netip.MustParseAddr(in)); got.String() != want {
			t.Errorf("%s: %s", in, got)
		}
	}
}

func TestLeafIsRenewed(t *testing.T) {
	p := start(t, Options{})
	a := p.enter(t, "a1")
	first := must(p.leaf.get(nil))
	p.clock.advance(15 * time.Hour)
	if must(p.leaf.get(nil)) != first {
		t.Error("renewed before two thirds of its life")
	}
	p.clock.advance(2 * time.Hour)
	a.CloseIdleConnections()
	_, err := a.Renew(t.Context())
	noError(t, err)
	if must(p.leaf.get(nil)) == first {
		t.Error("not renewed")
	}
	p.clock.advance(-48 * time.Hour)
	if leaf := must(p.leaf.get(nil)); leaf.Leaf.NotBefore.After(p.clock.now()) {
		t.Error("of the future, after the clock was set back")
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Options{Listen: "127.0.0.1:0", StateDir: t.TempDir(), Network: "Not A Name"}); !errors.Is(err, identity.ErrName) {
		t.Errorf("%v", err)
	}
	if _, err := New(Options{Listen: "nonsense", StateDir: t.TempDir()}); err == nil {
		t.Error("listens on nonsense")
	}
	dir := t.TempDir()
	c := must(New(Options{Listen: "127.0.0.1:0", StateDir: dir}))
	if _, err := New(Options{Listen: "127.0.0.1:0", StateDir: dir}); err == nil {
		t.Error("two coordinators in one folder")
	}
	c.Close()
	must(New(Options{Listen: "127.0.0.1:0", StateDir: dir})).Close()
}

func TestAscii(t *testing.T) {
	if got := ascii("a\x1b[31m é\n"); got != `a\u{1b}[31m \u{e9}\u{a}` {
		t.Errorf("%s", got)
	}
}

func FuzzDecodeBody(f *testing.F) {
	f.Add([]byte(`{"acceptance":"AA==","name":"planner","tunnel":"","record":null,"consent":"AA=="}`))
	f.Add([]byte(`{"join":"join:AAAA","uses":1,"expires":"2026-01-01T00:00:00Z","tags":["a"]}`))
	f.Add([]byte(`{"agent":"agent:x","name":"y"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, v := range []any{&api.JoinRequest{}, &api.InviteRequest{}, &api.RecordRequest{}, &api.ConsentRequest{}, &api.RevokeRequest{}, &api.SignalRequest{}} {
			err := decodeBody(bytes.NewReader(data), v)
			if err != nil && !api.HasCode(err, api.CodeBadRequest) {
				t.Errorf("%v", err)
			}
			if err == nil {
				if _, err := json.Marshal(v); err != nil {
					t.Errorf("%T can't be written again: %v", v, err)
				}
			}
		}
	})
}

func FuzzParseKeys(f *testing.F) {
	f.Add(pairKey(identity.AgentPublic{1}, identity.AgentPublic{2}), 2)
	f.Add("..", 3)
	f.Add("", 1)
	f.Fuzz(func(t *testing.T, key string, n int) {
		keys, ok := parseKeys(key, n%4)
		if ok && n%4 == 2 && !strings.EqualFold(pairKey(keys[0], keys[1]), key) {
			t.Errorf("%q is read as %v", key, keys)
		}
	})
}
