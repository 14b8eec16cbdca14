// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var servedConfig = DNSConfig{
	Interface: "pilot0", Server: netip.MustParseAddr("fd41:3648:751e::53"), Zone: "pilot.internal",
	Search: []string{"pilot.internal"}, Reverse: []string{"e.1.5.7.8.4.6.3.1.4.d.f.ip6.arpa"},
}

// serveDNS runs the service for each connection, as the system's socket unit does.
func serveDNS(t *testing.T, s system) (socket string, ended chan error) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "dns.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ended = make(chan error, 10)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			ended <- ServeDNS(conn, Options{StateDir: s.state, Root: s.root})
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return socket, ended
}

func TestServedDNS(t *testing.T) {
	s := newSystem(t)
	s.write(t, theirs)
	socket, ended := serveDNS(t, s)
	d, err := dialServedDNS(socket, quiet)
	if err != nil {
		t.Fatal(err)
	}
	before := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("192.0.2.2:53")}
	if d.Mode() != ModeFile || !slices.Equal(d.Upstreams(), before) {
		t.Errorf("mode %s, upstreams %v", d.Mode(), d.Upstreams())
	}
	if err := d.Set(servedConfig); err != nil {
		t.Fatal(err)
	}
	if got := s.read(t); !strings.Contains(got, "nameserver fd41:3648:751e::53\n") {
		t.Errorf("set:\n%s", got)
	}
	s.write(t, "nameserver 192.0.2.9\n") // as a DHCP client does
	if changed, err := d.Refresh(); err != nil || !changed {
		t.Errorf("refresh: %v, %v", changed, err)
	}
	if want := netip.MustParseAddrPort("192.0.2.9:53"); !slices.Equal(d.Upstreams(), []netip.AddrPort{want}) {
		t.Errorf("upstreams %v", d.Upstreams())
	}
	if err := d.Restore(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the service ended with %v", err)
	}
	if got := s.read(t); got != "nameserver 192.0.2.9\n" {
		t.Errorf("restored:\n%s", got)
	}
}

// A daemon that is killed leaves nothing behind; a service that is killed is asked again.
func TestServedDNSBreaksOff(t *testing.T) {
	s := newSystem(t)
	s.write(t, theirs)
	socket, ended := serveDNS(t, s)
	d, err := dialServedDNS(socket, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Set(servedConfig); err != nil {
		t.Fatal(err)
	}
	d.mu.Lock()
	d.conn.Close() // as the kernel does for a process that ends
	d.mu.Unlock()
	if err := <-ended; err != nil {
		t.Errorf("the service ended with %v", err)
	}
	if got := s.read(t); got != theirs {
		t.Errorf("after the daemon's end:\n%s", got)
	}
	if _, err := d.Refresh(); err == nil {
		t.Error("a broken connection is no error")
	}
	if changed, err := d.Refresh(); err != nil || !changed {
		t.Errorf("the next refresh: %v, %v", changed, err)
	}
	if got := s.read(t); !strings.Contains(got, "nameserver fd41:3648:751e::53\n") {
		t.Errorf("set again:\n%s", got)
	}
	if err := d.Restore(); err != nil {
		t.Error(err)
	}
	<-ended
	if got := s.read(t); got != theirs {
		t.Errorf("restored:\n%s", got)
	}
	s.checkLock(t)
}

// checkLock is checkClean where a lock has been, whose file stays.
func (s system) checkLock(t *testing.T) {
	t.Helper()
	release, err := LockFile(filepath.Join(s.state, "lock"))
	if err != nil {
		t.Error(err)
		return
	}
	release()
}

// The service has root's hands: what isn't an overlay's configuration is refused, whoever asks.
func TestServedDNSTakesNothingElse(t *testing.T) {
	s := newSystem(t)
	s.write(t, theirs)
	socket, ended := serveDNS(t, s)
	d, err := dialServedDNS(socket, quiet)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*DNSConfig){
		"interface":    func(c *DNSConfig) { c.Interface = "eth0" },
		"public":       func(c *DNSConfig) { c.Server = netip.MustParseAddr("2001:db8::53") },
		"IPv4":         func(c *DNSConfig) { c.Server = netip.MustParseAddr("10.0.0.1") },
		"zone":         func(c *DNSConfig) { c.Zone = "example.com" },
		"search":       func(c *DNSConfig) { c.Search = []string{"pilot.internal", "com"} },
		"reverse":      func(c *DNSConfig) { c.Reverse = []string{"8.b.d.0.1.0.0.2.ip6.arpa"} },
		"line feed":    func(c *DNSConfig) { c.Zone = "x\nnameserver 192.0.2.66.internal" },
		"empty search": func(c *DNSConfig) { c.Search = []string{""} },
	} {
		c := servedConfig
		change(&c)
		d.mu.Lock()
		_, err := d.askLocked(dnsQuestion{Method: "set", Config: c})
		d.mu.Unlock()
		if err == nil || !strings.Contains(err.Error(), ErrDNSConfig.Error()) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := s.read(t); got != theirs {
		t.Errorf("it is changed:\n%s", got)
	}
	d.Restore()
	<-ended
}

func TestServedDNSIsBusy(t *testing.T) {
	s := newSystem(t)
	s.write(t, theirs)
	release, err := LockFile(filepath.Join(s.state, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	socket, ended := serveDNS(t, s)
	if _, err := dialServedDNS(socket, quiet); !errors.Is(err, ErrDNSUnavailable) {
		t.Errorf("dial: %v", err)
	}
	if err := <-ended; !errors.Is(err, ErrLocked) {
		t.Errorf("the service ended with %v", err)
	}
}

// fakeDNS takes everything.
type fakeDNS struct{ set []DNSConfig }

func (f *fakeDNS) Set(c DNSConfig) error       { f.set = append(f.set, c); return nil }
func (f *fakeDNS) Upstreams() []netip.AddrPort { return nil }
func (f *fakeDNS) Refresh() (bool, error)      { return false, nil }
func (f *fakeDNS) Restore() error              { return nil }
func (f *fakeDNS) Mode() string                { return ModeFile }

// FuzzServedDNS shows that no bytes get a configuration past the checks.
func FuzzServedDNS(f *testing.F) {
	f.Add([]byte(`{"method":"set","config":{"Interface":"pilot0","Server":"fd41:3648:751e::53","Zone":"pilot.internal"}}` + "\n"))
	f.Add([]byte(`{"method":"refresh"}` + "\n" + `{"method":"restore"}` + "\n{}\n"))
	f.Add([]byte(`{"method":"set","config":{"Interface":"pilot0","Server":"::1","Zone":"com"}}`))
	f.Add(bytes.Repeat([]byte(" "), maxDNSLine+1))
	f.Fuzz(func(t *testing.T, questions []byte) {
		dns := &fakeDNS{}
		var answers bytes.Buffer
		_ = converse(struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(questions), &answers}, dns, nil)
		for _, c := range dns.set {
			if err := c.ofOverlay(); err != nil {
				t.Errorf("%+v was set: %v", c, err)
			}
		}
	})
}
