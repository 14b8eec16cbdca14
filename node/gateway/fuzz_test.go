// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"
)

// script is a caller that has said all that it will ever say.
type script struct {
	said    *bytes.Reader
	answers bytes.Buffer
}

func (s *script) Read(b []byte) (int, error)       { return s.said.Read(b) }
func (s *script) Write(b []byte) (int, error)      { return s.answers.Write(b) }
func (s *script) Close() error                     { return nil }
func (s *script) LocalAddr() net.Addr              { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1080} }
func (s *script) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 40000} }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// FuzzSOCKS is a caller that says anything: without the password it gets nowhere, and whatever is dialled is in the network.
func FuzzSOCKS(f *testing.F) {
	whole := func(r []byte) []byte {
		return bytes.Join([][]byte{greeting(), credentials(testUser, testPassword), r}, nil)
	}
	for _, seed := range [][]byte{
		whole(request(commandConnect, "planner", 80)), whole(request(commandConnect, planner.String(), 80)),
		whole(request(commandConnect, "127.0.0.1", 80)), whole(request(commandConnect, "::ffff:127.0.0.1", 80)),
		whole(request(commandConnect, "nobody", 80)), whole(request(2, "planner", 80)), whole([]byte{5, 1, 0, 9}),
		bytes.Join([][]byte{greeting(), credentials("a", "b"), request(commandConnect, "planner", 80)}, nil), {5, 1, 0}, {4, 1, 0, 80, 127, 0, 0, 1, 0},
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		if len(said) > 3+len(greeting()) && bytes.Contains(said, []byte{5, commandAssociate, 0}) {
			t.Skip("it would open a socket")
		}
		n := newFakeNetwork()
		g := New(Options{Network: n, User: testUser, Password: testPassword})
		c := &script{said: bytes.NewReader(said)}
		if err := g.socks(t.Context(), c); err == nil {
			t.Error("served, where nothing can be reached")
		}
		shown := bytes.Contains(said, credentials(testUser, testPassword))
		if len(n.dialed) > 0 && !shown {
			t.Errorf("dialled %v without a password", n.dialed)
		}
		for _, d := range n.dialed {
			if !prefix.Contains(netip.MustParseAddrPort(d).Addr()) {
				t.Errorf("dialled %s", d)
			}
		}
		if c.answers.Len() > 4+22 {
			t.Errorf("an answer of %d bytes", c.answers.Len())
		}
	})
}

// FuzzDatagram takes datagrams apart and puts them together again.
func FuzzDatagram(f *testing.F) {
	for _, host := range []string{"planner", "127.0.0.1", "::1", "::ffff:127.0.0.1", planner.String()} {
		f.Add(append(append([]byte{0, 0, 0}, request(0, host, 53)[3:]...), "data"...))
	}
	f.Add([]byte{0, 0, 1, 1, 127, 0, 0, 1, 0, 53})
	f.Fuzz(func(t *testing.T, b []byte) {
		d, data, err := parseDatagram(b)
		if err != nil {
			return
		}
		if d.host == "" || !bytes.HasSuffix(b, data) {
			t.Fatalf("%+v %x", d, data)
		}
		addr, err := netip.ParseAddr(d.host)
		if err != nil || b[3] == addressName || addr.Is4In6() {
			return // a name, or an address that is written in its shorter form
		}
		if again := append(appendDatagram(nil, netip.AddrPortFrom(addr, d.port)), data...); !bytes.Equal(again, b) {
			t.Errorf("%x became %x", b, again)
		}
	})
}

// FuzzHTTP is the same as FuzzSOCKS for the other proxy.
func FuzzHTTP(f *testing.F) {
	const shown = "Proxy-Authorization: Basic cGlsb3Q6YSBzZWNyZXQgb2YgdGhlIGRhZW1vbg==\r\n\r\n"
	for _, seed := range []string{
		"GET http://planner/ HTTP/1.1\r\nHost: planner\r\n" + shown, "GET / HTTP/1.1\r\nHost: planner\r\n" + shown,
		"CONNECT planner:80 HTTP/1.1\r\nHost: planner:80\r\n" + shown, "CONNECT [::ffff:127.0.0.1]:80 HTTP/1.1\r\nHost: x\r\n" + shown,
		"CONNECT planner:80 HTTP/1.1\r\nHost: planner:80\r\n\r\n", "GET http://user@[::1%25lo]/ HTTP/1.1\r\nHost: x\r\n" + shown,
		"POST http://planner/ HTTP/1.1\r\nHost: planner\r\nContent-Length: 3\r\nConnection: upgrade, x\r\nUpgrade: x\r\n" + shown,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(said)))
		if err != nil {
			return
		}
		n := newFakeNetwork()
		g := New(Options{Network: n, User: testUser, Password: testPassword})
		user, password, _ := proxyPassword(r.Header.Get("Proxy-Authorization"))
		w := httptest.NewRecorder()
		g.proxy(t.Context(), w, r, g.forward())
		_, _ = io.Copy(io.Discard, r.Body)
		g.http.CloseIdleConnections()
		if w.Code < http.StatusBadRequest {
			t.Errorf("answered with %d, where nothing can be reached", w.Code)
		}
		if (user != testUser || password != testPassword) && (len(n.dialed) > 0 || w.Code != http.StatusProxyAuthRequired) {
			t.Errorf("without a password: %d, dialled %v", w.Code, n.dialed)
		}
		for _, d := range n.dialed {
			if !prefix.Contains(netip.MustParseAddrPort(d).Addr()) {
				t.Errorf("dialled %s", d)
			}
		}
	})
}
