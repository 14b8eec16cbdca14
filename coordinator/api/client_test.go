// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/pilot-protocol/pilot/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// leaf makes a server certificate that the authority signed, after change.
func leaf(authority identity.AuthorityKey, change func(*x509.Certificate)) tls.Certificate {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	if change != nil {
		change(template)
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	parent := &x509.Certificate{SerialNumber: big.NewInt(2)}
	der := must(x509.CreateCertificate(rand.Reader, template, parent, public, authority.Signer()))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}
}

// fake is a server that counts what it learns of its callers.
type fake struct {
	addr         string
	requests     atomic.Int32
	certificates atomic.Int32
}

func serve(t testing.TB, l net.Listener, conf *tls.Config, h http.Handler) *fake {
	f := &fake{addr: l.Addr().String()}
	if conf.MaxVersion == 0 {
		conf.MinVersion = tls.VersionTLS13
	}
	conf.ClientAuth = tls.RequestClientCert
	conf.VerifyPeerCertificate = func(raw [][]byte, _ [][]*x509.Certificate) error {
		f.certificates.Add(int32(len(raw)))
		return nil
	}
	srv := &http.Server{
		TLSConfig: conf, ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			f.requests.Add(1)
			h.ServeHTTP(w, r)
		}),
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = srv.ServeTLS(l, "", "")
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-ended
	})
	return f
}

func loopback(t testing.TB) net.Listener {
	t.Helper()
	return must(net.Listen("tcp", "127.0.0.1:0"))
}

func text(status int, body string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})
}

func newClient(t testing.TB, authority identity.AuthorityKey, addrs ...string) *Client {
	t.Helper()
	c := must(NewClient(ClientOptions{
		Addresses: addrs, Authority: authority.Public(), Key: must(identity.NewAgentKey(rand.Reader)),
	}))
	t.Cleanup(c.CloseIdleConnections)
	return c
}

func newAuthority() identity.AuthorityKey { return must(identity.NewAuthorityKey(rand.Reader)) }

func TestAbuse09ServerWithoutTheAuthoritysKey(t *testing.T) {
	authority := newAuthority()
	cases := map[string]func() tls.Certificate{
		"another authority": func() tls.Certificate { return leaf(newAuthority(), nil) },
		"not for servers":   func() tls.Certificate { return leaf(authority, func(c *x509.Certificate) { c.ExtKeyUsage = nil }) },
		"for clients": func() tls.Certificate {
			return leaf(authority, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
		},
		"expired": func() tls.Certificate {
			return leaf(authority, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
		},
		"not valid yet": func() tls.Certificate {
			return leaf(authority, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) })
		},
		"a CA": func() tls.Certificate { return leaf(authority, func(c *x509.Certificate) { c.IsCA = true }) },
		"another kind of key": func() tls.Certificate {
			key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
			template := &x509.Certificate{
				SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
				ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
			}
			der := must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))
			return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
		},
		"a foreign leaf before a real one": func() tls.Certificate {
			foreign := leaf(newAuthority(), nil)
			foreign.Certificate = append(foreign.Certificate, leaf(authority, nil).Certificate...)
			return foreign
		},
	}
	for name, cert := range cases {
		t.Run(name, func(t *testing.T) {
			f := serve(t, loopback(t), &tls.Config{Certificates: []tls.Certificate{cert()}}, text(200, "{}"))
			c := newClient(t, authority, f.addr)
			_, err := c.Join(t.Context(), JoinRequest{Name: "secret"})
			if !HasCode(err, CodeKeyMismatch) || err.(*Error).Hint == "" {
				t.Errorf("join: %v", err)
			}
			for _, err := range c.Watch(t.Context()) {
				if !HasCode(err, CodeKeyMismatch) {
					t.Errorf("watch: %v", err)
				}
			}
			if f.requests.Load() != 0 || f.certificates.Load() != 0 {
				t.Errorf("the server learned of %d requests and %d certificates", f.requests.Load(), f.certificates.Load())
			}
		})
	}

	t.Run("a stolen certificate", func(t *testing.T) {
		// The leaf is real, but the server doesn't have its key.
		stolen := leaf(authority, nil)
		_, stolen.PrivateKey, _ = ed25519.GenerateKey(rand.Reader)
		f := serve(t, loopback(t), &tls.Config{
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &stolen, nil },
		}, text(200, "{}"))
		if err := newClient(t, authority, f.addr).PutConsent(t.Context(), nil); err == nil || f.requests.Load() != 0 || f.certificates.Load() != 0 {
			t.Errorf("%v, %d requests", err, f.requests.Load())
		}
	})
	t.Run("an older TLS", func(t *testing.T) {
		f := serve(t, loopback(t), &tls.Config{
			Certificates: []tls.Certificate{leaf(authority, nil)}, MaxVersion: tls.VersionTLS12,
		}, text(200, "{}"))
		if _, err := newClient(t, authority, f.addr).Renew(t.Context()); !HasCode(err, CodeUnavailable) || f.requests.Load() != 0 {
			t.Errorf("%v", err)
		}
	})
	t.Run("one good address of two", func(t *testing.T) {
		bad := serve(t, loopback(t), &tls.Config{Certificates: []tls.Certificate{leaf(newAuthority(), nil)}}, text(200, "{}"))
		good := serve(t, loopback(t), &tls.Config{Certificates: []tls.Certificate{leaf(authority, nil)}}, text(200, "{}"))
		c := newClient(t, authority, bad.addr, good.addr)
		for range 2 {
			if _, err := c.Renew(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if good.requests.Load() != 2 || good.certificates.Load() != 1 || bad.requests.Load() != 0 {
			t.Errorf("%d requests, %d certificates", good.requests.Load(), good.certificates.Load())
		}
		// Down and wrong: what matters is that one is wrong.
		c = newClient(t, authority, closedPort(t), bad.addr, closedPort(t))
		if _, err := c.Renew(t.Context()); !HasCode(err, CodeKeyMismatch) {
			t.Errorf("%v", err)
		}
	})
}

func closedPort(t testing.TB) string {
	l := loopback(t)
	defer l.Close()
	return l.Addr().String()
}

func TestAnswers(t *testing.T) {
	authority := newAuthority()
	for name, c := range map[string]struct {
		handler http.Handler
		code    string
	}{
		"error":         {text(409, `{"error":{"code":"NAME_TAKEN","message":"m","hint":"h","suggestion":"a-2"}}`), CodeNameTaken},
		"not JSON":      {text(200, "<html>"), CodeInternal},
		"truncated":     {text(200, `{"certificate":"`), CodeInternal},
		"proxy error":   {text(502, "<html>"), CodeUnavailable},
		"other error":   {text(418, "teapot"), CodeInternal},
		"empty error":   {text(500, `{"error":{}}`), CodeInternal},
		"redirect":      {http.RedirectHandler("https://127.0.0.1:1/", 307), CodeInternal},
		"endless":       {http.HandlerFunc(endless), CodeInternal},
		"endless error": {http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500); endless(w, r) }), CodeInternal},
		"cut off":       {http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }), CodeUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			f := serve(t, loopback(t), &tls.Config{Certificates: []tls.Certificate{leaf(authority, nil)}}, c.handler)
			_, err := newClient(t, authority, f.addr).Renew(t.Context())
			if !HasCode(err, c.code) {
				t.Errorf("%v", err)
			}
		})
	}
}

func endless(w http.ResponseWriter, _ *http.Request) {
	chunk := strings.Repeat(" ", 1<<20)
	for {
		if _, err := io.WriteString(w, chunk); err != nil {
			return
		}
	}
}

func TestAddresses(t *testing.T) {
	for in, want := range map[string]string{
		"host": "host:7745", "host:1": "host:1", "192.0.2.1": "192.0.2.1:7745", "[2001:db8::1]": "[2001:db8::1]:7745",
		"2001:db8::1": "[2001:db8::1]:7745", "[2001:db8::1]:2": "[2001:db8::1]:2",
		"": "", "host:0": "", "host:x": "", ":1": "", "host:65536": "",
	} {
		got, err := normalAddress(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	if _, err := NewClient(ClientOptions{}); !HasCode(err, CodeBadRequest) {
		t.Errorf("%v", err)
	}
}

func TestErrorsUnwrap(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := newClient(t, newAuthority(), closedPort(t))
	if _, err := c.Renew(ctx); !HasCode(err, CodeUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if _, err := c.Agent(t.Context(), "../x"); !HasCode(err, CodeNotFound) {
		t.Errorf("%v", err)
	}
}

// pipes is a listener whose connections never leave the process, as testing/synctest wants it.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { close(p.done); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 7745} }
func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case p.conns <- far:
		return near, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func TestWatchGivesUpASilentStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		authority := newAuthority()
		l := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
		serve(t, l, &tls.Config{Certificates: []tls.Certificate{leaf(authority, nil)}}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for range 4 { // pings for a minute, then nothing
				_, _ = io.WriteString(w, `{"type":"ping"}`+"\n")
				w.(http.Flusher).Flush()
				time.Sleep(PingInterval)
			}
			<-r.Context().Done()
		}))
		c := must(NewClient(ClientOptions{Addresses: []string{"192.0.2.1"}, Authority: authority.Public(), Dial: l.dial}))
		start, pings, last := time.Now(), 0, error(nil)
		for e, err := range c.Watch(t.Context()) {
			if err == nil && e.Type == EventPing {
				pings++
				time.Sleep(time.Minute / 4) // a slow reader isn't a silent stream
			}
			last = err
		}
		if pings != 4 || !HasCode(last, CodeUnavailable) || !errors.Is(last, errSilent) {
			t.Errorf("%d pings, %v", pings, last)
		}
		if took := time.Since(start); took < SilenceLimit+3*PingInterval || took > SilenceLimit+5*PingInterval {
			t.Errorf("given up after %v", took)
		}
		c.CloseIdleConnections()
	})
}

func TestWatchEnds(t *testing.T) {
	authority := newAuthority()
	for name, c := range map[string]struct {
		body string
		code string
	}{
		"end":          {`{"type":"ping"}` + "\n", CodeUnavailable},
		"junk":         {"junk\n", CodeInternal},
		"no type":      {"{}\n", CodeInternal},
		"no content":   {`{"type":"peer"}` + "\n", CodeInternal},
		"reason":       {`{"error":{"code":"REVOKED","message":"m"}}` + "\n", CodeRevoked},
		"endless line": {strings.Repeat("x", maxLine+1), CodeUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			f := serve(t, loopback(t), &tls.Config{Certificates: []tls.Certificate{leaf(authority, nil)}}, text(200, c.body))
			var last error
			for _, err := range newClient(t, authority, f.addr).Watch(t.Context()) {
				last = err
			}
			if !HasCode(last, c.code) {
				t.Errorf("%v", last)
			}
		})
	}
	t.Run("the caller leaves", func(t *testing.T) {
		f := serve(t, loopback(t), &tls.Config{Certificates: []tls.Certificate{leaf(authority, nil)}}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, `{"type":"new-kind","more":1}`+"\n")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}))
		for e, err := range newClient(t, authority, f.addr).Watch(t.Context()) {
			if err != nil || e.Type != "new-kind" {
				t.Errorf("%v %v", e, err)
			}
			break
		}
	})
}

func TestClientAgent(t *testing.T) {
	key := must(identity.NewAgentKey(rand.Reader))
	parse := func(c *tls.Certificate) *x509.Certificate { return must(x509.ParseCertificate(c.Certificate[0])) }
	good := parse(must(newClientCertificate(key, time.Now())))
	got, err := ClientAgent(&tls.ConnectionState{PeerCertificates: []*x509.Certificate{good}})
	if err != nil || got != key.Public() {
		t.Errorf("%s, %v", got, err)
	}
	foreign := leaf(newAuthority(), nil) // signed by a key that isn't its own
	for name, certs := range map[string][]*x509.Certificate{
		"none": nil, "two": {good, good}, "signed by another": {parse(&foreign)},
	} {
		if _, err := ClientAgent(&tls.ConnectionState{PeerCertificates: certs}); !errors.Is(err, ErrClientCertificate) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ClientAgent(nil); !errors.Is(err, ErrClientCertificate) {
		t.Errorf("%v", err)
	}
}

func TestClientCertificatesAreRenewed(t *testing.T) {
	now := time.Now()
	c := clientCertificates{key: must(identity.NewAgentKey(rand.Reader)), now: func() time.Time { return now }}
	first := must(c.get(nil))
	if must(c.get(nil)) != first {
		t.Error("made anew within its life")
	}
	now = now.Add(clientCertificateLife / 2)
	if must(c.get(nil)) == first {
		t.Error("not renewed")
	}
	now = now.Add(-48 * time.Hour) // the clock was set back
	if cert := must(c.get(nil)); must(x509.ParseCertificate(cert.Certificate[0])).NotBefore.After(now) {
		t.Error("of the future")
	}
}

func FuzzDecodeLine(f *testing.F) {
	for _, s := range []string{
		`{"type":"ping"}`, `{"type":"synced","observed":"192.0.2.1"}`, `{"type":"peer","peer":{"certificate":"AA=="}}`,
		`{"error":{"code":"X"}}`, `{"type":"consent","consent":{"consent":"","other":"AA=="}}`, `{"type":"revocation","revocation":"AA=="}`, `null`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := decodeLine(line)
		var known *Error
		if err != nil && !errors.As(err, &known) {
			t.Errorf("%T", err)
		}
		if err == nil && e.check() != nil {
			t.Errorf("an event without its content: %+v", e)
		}
	})
}

func FuzzDecodeAnswer(f *testing.F) {
	f.Add(200, []byte(`{"certificate":"AA==","coordinators":["a"],"inviter":{"observed":["::1"]}}`))
	f.Add(500, []byte(`{"error":{"code":"X","message":"y"}}`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		var m Membership
		if err := decode(strings.NewReader(string(body)), &m); err != nil && !HasCode(err, CodeInternal) {
			t.Errorf("%v", err)
		}
		if e := decodeError(status, strings.NewReader(string(body))); e == nil || e.Code == "" || fmt.Sprint(e) == "" {
			t.Errorf("%+v", e)
		}
	})
}
