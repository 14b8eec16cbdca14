// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// site is a program that serves HTTP until the test ends, HTTP/2 without TLS too.
func site(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: h, Protocols: protocols}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-ended })
	return l.Addr().String()
}

// raw sends bytes to a port and returns the answer, without its end.
func (r *running) raw(t *testing.T, n uint16, request string) *http.Response {
	t.Helper()
	c := r.dial(t, n)
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func bodyOf(t *testing.T, r *http.Response) string {
	t.Helper()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// forgeries are headers by which a caller could pass for somebody else.
func forgeries() []string {
	return []string{
		"Pilot-Agent: root", "pilot-agent: root", "PILOT-AGENT: root", "pILOT-aGENT-kEY: agent:x", "Pilot_Agent: root", "pilot_agent_key: x",
		"PILOT_AGENT_TAGS: admin", "Pilot-Agent_Address: ::1", "Pilot.Agent: root", "Pilot-Agent-Anything: x", "Pilot-Agent: root\r\nPilot-Agent: also",
		"Connection: Pilot-Agent", "Connection: close, pilot-agent-key, Pilot-Agent-Tags", "Connection: X-Forwarded-For",
		"X-Forwarded-For: 127.0.0.1", "X_Forwarded_For: 127.0.0.1", "X-Forwarded-Host: localhost", "X-Forwarded-User: root", "Forwarded: for=127.0.0.1", "X-Real-IP: 127.0.0.1",
		"X-Real_Ip: 127.0.0.1", "Trailer: Pilot-Agent", "Te: trailers\r\nTrailer: Pilot-Agent",
	}
}

// Whatever a caller sends, a program is told who it is once, and rightly.
func TestIdentityCanNotBeForged(t *testing.T) {
	seen := make(chan http.Header, 1)
	r := start(t, Options{})
	r.set(t, port(t, "http", 80, site(t, func(_ http.ResponseWriter, q *http.Request) {
		_, _ = io.Copy(io.Discard, q.Body)
		h := q.Header.Clone()
		for name, v := range q.Trailer {
			h["Trailer:"+name] = v
		}
		seen <- h
	})))
	want := map[string]string{
		"Pilot-Agent": "planner", "Pilot-Agent-Key": caller.Key.String(), "Pilot-Agent-Address": "fd5c:1d2:93a0::a", "Pilot-Agent-Tags": "admin,eu",
		"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": "warehouse", "X-Forwarded-Proto": "http",
	}
	for _, forged := range append(forgeries(), strings.Join(forgeries(), "\r\n")) {
		for _, chunked := range []bool{false, true} {
			head := "POST /path?a=1;b=2 HTTP/1.1\r\nHost: warehouse\r\n" + forged + "\r\nContent-Length: 0\r\n\r\n"
			if chunked { // with more after the body
				head = "POST / HTTP/1.1\r\nHost: warehouse\r\n" + forged + "\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nPilot-Agent: root\r\nPilot_Agent: root\r\n\r\n"
			}
			if resp := r.raw(t, 80, head); resp.StatusCode != http.StatusOK {
				t.Fatalf("%q: %s", head, resp.Status)
			}
			got := <-seen
			for name, v := range got {
				if isReserved(strings.TrimPrefix(name, "Trailer:")) && !slices.Equal(v, []string{want[name]}) {
					t.Errorf("%q: the program sees %s: %q", head, name, v)
				}
			}
			for name := range want {
				if len(got[name]) != 1 {
					t.Errorf("%q: the program sees no %s", head, name)
				}
			}
		}
	}
}

// The same by HTTP/2, where trailers and names have another form.
func TestIdentityCanNotBeForgedByHTTP2(t *testing.T) {
	seen := make(chan *http.Request, 1)
	r := start(t, Options{})
	r.set(t, port(t, "http", 80, site(t, func(_ http.ResponseWriter, q *http.Request) {
		_, _ = io.Copy(io.Discard, q.Body)
		seen <- q
	})))
	for _, kind := range []string{"application/grpc", "text/plain"} {
		tr := &http.Transport{Protocols: new(http.Protocols)}
		tr.Protocols.SetUnencryptedHTTP2(true)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+r.network.where(80)+"/", strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = http.Header{"pilot_agent": {"root"}, "Pilot-Agent": {"root"}, "Content-Type": {kind}}
		req.Trailer = http.Header{"Pilot-Agent": {"root"}}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		q := <-seen
		if q.Header.Get("Pilot-Agent") != "planner" || len(q.Header.Values("Pilot-Agent")) != 1 || len(q.Header["Pilot_agent"]) > 0 || len(q.Trailer) > 0 {
			t.Errorf("%s: %v, trailer %v", kind, q.Header, q.Trailer)
		}
		if isGRPC := kind == "application/grpc"; (q.ProtoMajor == 2) != isGRPC || resp.ProtoMajor != 2 {
			t.Errorf("%s: the program is asked by %s, the caller answered by %s", kind, q.Proto, resp.Proto)
		}
		tr.CloseIdleConnections()
	}
}

// A connection doesn't become one on which nobody looks at headers any more.
func TestUpgradeToMoreRequestsIsNotPassedOn(t *testing.T) {
	seen := make(chan http.Header, 1)
	r := start(t, Options{})
	r.set(t, port(t, "http", 80, site(t, func(_ http.ResponseWriter, q *http.Request) { seen <- q.Header })))
	for _, protocol := range []string{"h2c", "H2C", "HTTP/2.0", "TLS/1.0", "websocket, h2c", "anything"} {
		resp := r.raw(t, 80, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: "+protocol+"\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n")
		if h := <-seen; resp.StatusCode != http.StatusOK || h.Get("Upgrade") != "" {
			t.Errorf("%s: %s %v", protocol, resp.Status, h)
		}
	}
}

// A web socket is a stream of bytes both ways after its beginning.
func TestWebSocket(t *testing.T) {
	r := start(t, Options{})
	target := program(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
		b := bufio.NewReader(c)
		q, err := http.ReadRequest(b)
		if err != nil || q.Header.Get("Upgrade") != "websocket" || q.Header.Get("Pilot-Agent") != "planner" {
			t.Errorf("asked for %v %v", q, err)
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_, _ = io.Copy(c, b)
	})
	r.set(t, port(t, "http", 80, target))
	c := r.dial(t, 80)
	if _, err := io.WriteString(c, "GET /socket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	b := bufio.NewReader(c)
	resp, err := http.ReadResponse(b, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v %v", resp, err)
	}
	for _, text := range []string{"one", "two"} {
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 3)
		if _, err := io.ReadFull(b, got); err != nil || string(got) != text {
			t.Errorf("%q %v", got, err)
		}
	}
	r.set(t) // it ends with the port
	if _, err := b.ReadByte(); err == nil {
		t.Error("it goes on")
	}
}

// An answer is passed on as it comes, not when there is enough of it.
func TestStreams(t *testing.T) {
	r := start(t, Options{})
	more := make(chan struct{})
	r.set(t, port(t, "http", 80, site(t, func(w http.ResponseWriter, _ *http.Request) {
		for i := range 3 {
			fmt.Fprintf(w, "event %d\n", i)
			_ = http.NewResponseController(w).Flush()
			<-more
		}
	})))
	lines := bufio.NewScanner(r.raw(t, 80, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").Body)
	for i := range 3 {
		if !lines.Scan() || lines.Text() != fmt.Sprintf("event %d", i) {
			t.Fatalf("%q %v", lines.Text(), lines.Err())
		}
		more <- struct{}{}
	}
}

func TestHTTPWithoutTarget(t *testing.T) {
	r := start(t, Options{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	r.set(t, port(t, "http", 80, l.Addr().String()))
	resp := r.raw(t, 80, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	text := bodyOf(t, resp)
	if resp.StatusCode != http.StatusBadGateway || !strings.Contains(text, "the program behind port 80 does not answer: ") || strings.Contains(text, l.Addr().String()) {
		t.Errorf("%s %q", resp.Status, text)
	}
	if s := r.Status(); s[0].Failed != 1 || s[0].Problem == nil || s[0].Problem.Code != localapi.CodeUnavailable {
		t.Errorf("%+v", s[0])
	}
}

// Requests that are none for the program.
func TestHTTPRefusals(t *testing.T) {
	r := start(t, Options{})
	r.set(t, port(t, "http", 80, site(t, func(_ http.ResponseWriter, q *http.Request) { t.Errorf("%s %s got through", q.Method, q.URL) })))
	if resp := r.raw(t, 80, "CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\n\r\n"); resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("CONNECT: %s", resp.Status)
	}
	if resp := r.raw(t, 80, "GET / HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("x", 2*maxHead)+"\r\n\r\n"); resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a huge head: %s", resp.Status)
	}
	r.network.mu.Lock()
	r.network.closed = true
	r.network.mu.Unlock()
	if resp := r.raw(t, 80, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); resp.StatusCode != http.StatusForbidden {
		t.Errorf("a caller that is not known: %s", resp.Status)
	}
	if s := r.Status(); s[0].Refused != 1 {
		t.Errorf("%+v", s[0])
	}
}

// An address in the request line doesn't lead anywhere but to the program.
func TestAbsoluteRequest(t *testing.T) {
	r := start(t, Options{})
	r.set(t, port(t, "http", 80, site(t, func(w http.ResponseWriter, q *http.Request) { fmt.Fprintf(w, "%s at %s", q.URL, q.Host) })))
	resp := r.raw(t, 80, "GET http://169.254.169.254/latest/meta-data?x;y HTTP/1.1\r\nHost: warehouse\r\n\r\n")
	if text := bodyOf(t, resp); text != "/latest/meta-data?x;y at 169.254.169.254" {
		t.Errorf("%s %q", resp.Status, text)
	}
}

// A Unix socket takes requests as well.
func TestHTTPOverUnix(t *testing.T) {
	path := t.TempDir() + "/s"
	program(t, "unix", path, func(c net.Conn) {
		if q, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			_, _ = fmt.Fprintf(c, "HTTP/1.0 200 OK\r\n\r\n%s for %s", q.Host, q.Header.Get("Pilot-Agent"))
		}
	})
	r := start(t, Options{})
	r.set(t, port(t, "http", 80, "unix:"+path))
	if text := bodyOf(t, r.raw(t, 80, "GET / HTTP/1.1\r\nHost: warehouse\r\n\r\n")); text != "warehouse for planner" {
		t.Errorf("%q", text)
	}
}

// FuzzIdentify: whatever headers a request has, those that say who asks are ours.
func FuzzIdentify(f *testing.F) {
	for _, h := range forgeries() {
		name, value, _ := strings.Cut(h, ":")
		f.Add(name, value)
	}
	f.Fuzz(func(t *testing.T, name, value string) {
		h := http.Header{name: {value}, http.CanonicalHeaderKey(name): {value, value}}
		identify(h, caller)
		for n, v := range h {
			if key := url.QueryEscape(strings.ToLower(strings.NewReplacer("_", "-", ".", "-", " ", "-").Replace(n))); strings.HasPrefix(key, "pilot-agent") &&
				(len(v) != 1 || !slices.Contains([]string{headerAgent, headerKey, headerAddress, headerTags}, n)) {
				t.Errorf("%q: %q", n, v)
			}
		}
		if h.Get(headerAgent) != "planner" {
			t.Errorf("%q", h)
		}
	})
}
