// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// fetch gets a page through an HTTP proxy.
func fetch(t *testing.T, proxy, page string) (status int, text string) {
	t.Helper()
	u, err := url.Parse(proxy)
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(u), DisableKeepAlives: true}}
	r, err := client.Get(page)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(body)
}

// A program without an interface reaches an agent through the proxy, by name, and nothing else.
func TestProxies(t *testing.T) {
	ctx := t.Context()
	planner, warehouse, _ := userspacePair(t)
	l, err := planner.node.Listen(ctx, "tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	site := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "the plan at "+r.Host) })}
	served := make(chan error)
	go func() { served <- site.Serve(l) }()
	defer func() {
		site.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}()
	p, err := warehouse.Proxies(ctx)
	if err != nil || !strings.HasPrefix(p.SOCKS5, "socks5h://pilot:") || !strings.HasPrefix(p.HTTP, "http://pilot:") || p.Direct {
		t.Fatalf("%+v %v", p, err)
	}
	for _, c := range []struct {
		page   string
		status int
		text   string
	}{
		{"http://planner/", http.StatusOK, "the plan at planner"},
		{"http://planner.pilot.internal/", http.StatusOK, "the plan at planner.pilot.internal"},
		{"http://pilot.internal/", http.StatusOK, "warehouse"},
		{"http://planner:81/", http.StatusBadGateway, "refused"},
		{"http://auditor/", http.StatusForbidden, "do not trust each other"},
		{"http://nobody/", http.StatusBadGateway, "no such agent"},
		{"http://127.0.0.1/", http.StatusForbidden, "not a name or an address in the network"},
		{"http://example.com/", http.StatusForbidden, "not a name or an address in the network"},
	} {
		if status, text := fetch(t, p.HTTP, c.page); status != c.status || !strings.Contains(text, c.text) {
			t.Errorf("%s: %d %q", c.page, status, text)
		}
	}
	s, err := warehouse.Status(ctx)
	if err != nil || s.Self.HTTPProxy == "" || !strings.Contains(p.HTTP, s.Self.HTTPProxy) || s.Self.ProxyDirect {
		t.Errorf("%+v %v", s.Self, err)
	}
	text, err := os.ReadFile(filepath.Join(warehouse.dir, proxyFile))
	info, statErr := os.Stat(filepath.Join(warehouse.dir, proxyFile))
	u, _ := url.Parse(p.HTTP)
	password, _ := u.User.Password()
	if err != nil || statErr != nil || !strings.Contains(string(text), password) || info.Mode().Perm() != 0o600 {
		t.Errorf("the password's file: %v %v %v", err, statErr, info)
	}
	if strings.Contains(warehouse.log.String(), password) {
		t.Error("the password is in the log")
	}
	// After a restart what was told to programs still holds.
	warehouse.end()
	again := startDaemon(t, warehouse.dir)
	eventually(t, "the proxies are where they were", func() bool {
		now, err := again.Proxies(ctx)
		return err == nil && now == p
	})
}

func TestProxiesAreChosen(t *testing.T) {
	ctx := t.Context()
	d := startDaemon(t, stateDir(t))
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, c := range []struct {
		request localapi.UpRequest
		code    string
	}{
		{localapi.UpRequest{SOCKS5: "1080"}, localapi.CodeUsage},
		{localapi.UpRequest{SOCKS5: "localhost:1080"}, localapi.CodeUsage},
		{localapi.UpRequest{HTTPProxy: "0.0.0.0:3128"}, localapi.CodeUsage},
		{localapi.UpRequest{HTTPProxy: "192.0.2.1:3128"}, localapi.CodeUsage},
		{localapi.UpRequest{HTTPProxy: taken.Addr().String()}, localapi.CodePortTaken},
	} {
		c.request.CoordinatorListen = listenLoopback
		if _, err := d.Up(ctx, c.request); code(err) != c.code {
			t.Errorf("%+v: %v", c.request, err)
		}
	}
	// With an interface there are none, unless they are wanted.
	up, err := d.Up(ctx, localapi.UpRequest{CoordinatorListen: listenLoopback, HTTPProxy: localapi.ProxyOff})
	if err != nil || up.TUN != localapi.TUNKernel || up.SOCKS5 != "" || up.HTTPProxy != "" {
		t.Errorf("%+v %v", up, err)
	}
	if _, err := d.Proxies(ctx); code(err) != localapi.CodeNotFound {
		t.Errorf("%v", err)
	}
	if _, err := d.Up(ctx, localapi.UpRequest{SOCKS5: "127.0.0.1:0"}); code(err) != localapi.CodeConflict {
		t.Errorf("while it is up: %v", err)
	}
	direct := true
	if _, err := d.Down(ctx); err != nil {
		t.Fatal(err)
	}
	d.end()
	d = startDaemon(t, d.dir)
	up, err = d.Up(ctx, localapi.UpRequest{SOCKS5: "127.0.0.1:0", ProxyDirect: &direct})
	if err != nil || up.SOCKS5 == "" || up.HTTPProxy != "" {
		t.Errorf("%+v %v", up, err)
	}
	if p, err := d.Proxies(ctx); err != nil || !p.Direct || p.HTTP != "" || !strings.Contains(p.SOCKS5, up.SOCKS5) {
		t.Errorf("%+v %v", p, err)
	}
}

// A password that was cut is not taken for one.
func TestProxyPasswordDamaged(t *testing.T) {
	for _, text := range []string{`{"version":3,"password":"short"}`, `{"version":3`, `{"version":3,"password":""}`} {
		f := newFolder(stateDir(t), nil)
		if err := os.WriteFile(filepath.Join(f.dir, proxyFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := f.proxyPassword(); code(err) != localapi.CodeStateDamaged {
			t.Errorf("%s: %v", text, err)
		}
	}
}
