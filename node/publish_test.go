// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// greeter answers each connection with a greeting, what it was told, and an end.
func greeter(t *testing.T, network, address string) net.Addr {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			text, err := io.ReadAll(c)
			if err == nil {
				_, _ = fmt.Fprintf(c, "you said %q", text)
			}
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-ended })
	return l.Addr()
}

// say connects by the daemon's local API, says something, and returns the answer.
func say(ctx context.Context, d *daemon, host string, port uint16, text string) (string, error) {
	c, err := d.Connect(ctx, localapi.ConnectRequest{Host: host, Port: port})
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(c)
	return string(answer), err
}

// publishIn publishes a port, or ends the test.
func publishIn(t *testing.T, d *daemon, r localapi.ServeRequest) localapi.Served {
	t.Helper()
	r.Action = localapi.ActionPublish
	list, err := d.Serve(t.Context(), r)
	if err != nil || len(list.Served) != 1 {
		t.Fatalf("%+v %v", list, err)
	}
	return list.Served[0]
}

func TestServeTCP(t *testing.T) {
	ctx := t.Context()
	planner, warehouse, auditor := userspacePair(t)
	target := greeter(t, "tcp", "127.0.0.1:0")
	if s := publishIn(t, warehouse, localapi.ServeRequest{Port: 5432, Target: target.String()}); s.Protocol != localapi.ServeTCP || s.Target != target.String() {
		t.Errorf("%+v", s)
	}
	answer, err := say(ctx, planner, "warehouse", 5432, "hello")
	if answer != `you said "hello"` || err != nil {
		t.Fatalf("%q %v", answer, err)
	}
	if _, err := say(ctx, auditor, "warehouse", 5432, "hello"); code(err) != localapi.CodeNotTrusted {
		t.Errorf("somebody without trust: %v", err)
	}
	eventually(t, "the connection is counted", func() bool {
		s := served(t, warehouse)
		return len(s) == 1 && s[0].Connections == 1 && s[0].Active == 0 && s[0].RxBytes == 5 && s[0].TxBytes == uint64(len(answer))
	})
	// It comes back with the daemon.
	warehouse.end()
	again := startDaemon(t, warehouse.dir)
	eventually(t, "the port is published again", func() bool {
		answer, err := say(ctx, planner, "warehouse", 5432, "again")
		return answer == `you said "again"` && err == nil
	})
	list, err := again.Serve(ctx, localapi.ServeRequest{Action: localapi.ActionRemove, Port: 5432})
	if err != nil || len(list.Served) != 1 || list.Served[0].Connections == 0 {
		t.Errorf("%+v %v", list, err)
	}
	if _, err := say(ctx, planner, "warehouse", 5432, "hello"); code(err) != localapi.CodeRefused {
		t.Errorf("after it was removed: %v", err)
	}
	if _, err := again.Serve(ctx, localapi.ServeRequest{Action: localapi.ActionRemove, Port: 5432}); code(err) != localapi.CodeNotFound {
		t.Errorf("removed twice: %v", err)
	}
}

func served(t *testing.T, d *daemon) []localapi.Served {
	t.Helper()
	list, err := d.ServeList(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return list.Served
}

// Nobody behind the port is a reset, and is shown.
func TestServeWithoutTarget(t *testing.T) {
	planner, warehouse, _ := userspacePair(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	target := l.Addr().String()
	l.Close()
	publishIn(t, warehouse, localapi.ServeRequest{Port: 80, Target: target})
	c, err := planner.node.DialContext(t.Context(), "tcp", "warehouse:80")
	if err == nil {
		_, err = c.Read(make([]byte, 1))
		c.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the caller meets %v", err)
	}
	eventually(t, "it is shown", func() bool {
		s := served(t, warehouse)
		return s[0].Failed > 0 && s[0].Problem != nil && strings.Contains(s[0].Problem.Message, "connection refused")
	})
	if s, err := warehouse.Status(t.Context()); err != nil || len(s.Served) != 1 || s.Served[0].Problem == nil {
		t.Errorf("in the status: %+v %v", s.Served, err)
	}
}

// A port that somebody else listens on is refused, and what was published there before stays.
func TestServePortTaken(t *testing.T) {
	planner, warehouse, _ := userspacePair(t)
	target := greeter(t, "tcp", "127.0.0.1:0").String()
	l, err := warehouse.node.Listen(t.Context(), "tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	_, err = warehouse.Serve(t.Context(), localapi.ServeRequest{Action: localapi.ActionPublish, Port: 80, Target: target})
	var e *localapi.Error
	if !errors.As(err, &e) || e.Code != localapi.CodePortTaken || e.Hint == "" {
		t.Errorf("%#v", err)
	}
	if s := served(t, warehouse); len(s) != 0 {
		t.Errorf("published: %+v", s)
	}
	l.Close()
	publishIn(t, warehouse, localapi.ServeRequest{Port: 80, Target: target})
	// Another target in its place.
	other := greeter(t, "unix", filepath.Join(t.TempDir(), "s"))
	publishIn(t, warehouse, localapi.ServeRequest{Port: 80, Target: "unix:" + other.String()})
	if answer, err := say(t.Context(), planner, "warehouse", 80, "x"); answer != `you said "x"` || err != nil {
		t.Errorf("%q %v", answer, err)
	}
	if s := served(t, warehouse); len(s) != 1 || s[0].Target != "unix:"+other.String() {
		t.Errorf("published: %+v", s)
	}
}

func TestServeRequestsThatAreWrong(t *testing.T) {
	planner, _, _ := userspacePair(t)
	for _, c := range []struct {
		r    localapi.ServeRequest
		code string
	}{
		{localapi.ServeRequest{Action: "publish"}, localapi.CodeUsage},
		{localapi.ServeRequest{Action: "publish", Port: 80, Protocol: "sctp"}, localapi.CodeUsage},
		{localapi.ServeRequest{Action: "open", Port: 80}, localapi.CodeUsage},
		{localapi.ServeRequest{Action: "publish", Port: 80, Target: "example.com:80"}, localapi.CodeUsage},
		{localapi.ServeRequest{Action: "publish", Port: 80, Target: "unix:run/x"}, localapi.CodeUsage},
		{localapi.ServeRequest{Action: "publish", Port: 80, Protocol: "udp", Target: "unix:/run/x"}, localapi.CodeUsage},
		{localapi.ServeRequest{Action: "publish", Port: 80, Target: "169.254.169.254:80"}, localapi.CodeForbidden},
		{localapi.ServeRequest{Action: "publish", Port: 80, Target: netip.AddrPortFrom(addressOf(t, planner), 80).String()}, localapi.CodeForbidden},
	} {
		if _, err := planner.Serve(t.Context(), c.r); code(err) != c.code {
			t.Errorf("%+v: %v", c.r, err)
		}
	}
	down := startDaemon(t, stateDir(t))
	if _, err := down.Serve(t.Context(), localapi.ServeRequest{Action: "publish", Port: 80}); code(err) != localapi.CodeNotUp {
		t.Errorf("without a network: %v", err)
	}
	if _, err := down.ServeList(t.Context()); code(err) != localapi.CodeNotUp {
		t.Errorf("without a network: %v", err)
	}
	if _, err := down.Connect(t.Context(), localapi.ConnectRequest{Host: "planner", Port: 80}); code(err) != localapi.CodeNotUp {
		t.Errorf("without a network: %v", err)
	}
}

// Why there is no connection is told by a code, before anything else.
func TestConnectErrors(t *testing.T) {
	planner, _, _ := userspacePair(t)
	for _, c := range []struct {
		r    localapi.ConnectRequest
		code string
	}{
		{localapi.ConnectRequest{Host: "warehouse", Port: 81}, localapi.CodeRefused},
		{localapi.ConnectRequest{Host: "nobody", Port: 81}, localapi.CodeNotFound},
		{localapi.ConnectRequest{Host: "example.com", Port: 81}, localapi.CodeNotFound},
		{localapi.ConnectRequest{Host: "auditor", Port: 81}, localapi.CodeNotTrusted},
		{localapi.ConnectRequest{Host: "warehouse"}, localapi.CodeUsage},
		{localapi.ConnectRequest{Port: 1}, localapi.CodeUsage},
		{localapi.ConnectRequest{Host: "warehouse", Port: 1, Protocol: "sctp"}, localapi.CodeUsage},
	} {
		if _, err := planner.Connect(t.Context(), c.r); code(err) != c.code {
			t.Errorf("%+v: %v", c.r, err)
		}
	}
}

// Programs behind an HTTP port are told who asks.
func TestServeHTTP(t *testing.T) {
	planner, warehouse, _ := userspacePair(t)
	seen := make(chan http.Header, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Header
		_, _ = io.WriteString(w, "the stock of "+r.Host)
	})}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = srv.Serve(l) }()
	defer func() { srv.Close(); <-ended }()
	publishIn(t, warehouse, localapi.ServeRequest{Protocol: localapi.ServeHTTP, Port: 80, Target: l.Addr().String()})
	tr := &http.Transport{DialContext: planner.node.DialContext}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://warehouse/", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Pilot-Agent", "root")
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); string(text) != "the stock of warehouse" || err != nil {
		t.Errorf("%q %v", text, err)
	}
	h := <-seen
	who, err := warehouse.WhoIs(t.Context(), "planner")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"Pilot-Agent": "planner", "Pilot-Agent-Key": who.Key.String(), "Pilot-Agent-Address": who.Address.String(), "Pilot-Agent-Tags": "admin",
		"X-Forwarded-For": who.Address.String(), "X-Forwarded-Host": "warehouse", "X-Forwarded-Proto": "http",
	} {
		if got := h.Values(name); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q, expected %q", name, got, want)
		}
	}
}
