// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"
)

// fakeResolved answers on a private bus as systemd-resolved does.
type fakeResolved struct {
	mu    sync.Mutex
	calls []string
	links map[int32][]resolvedAddress
	gets  int
}

func (f *fakeResolved) note(format string, args ...any) *dbus.Error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
	return nil
}

func (f *fakeResolved) SetLinkDNS(i int32, a []resolvedAddress) *dbus.Error {
	f.mu.Lock()
	f.links[i] = a
	f.mu.Unlock()
	return f.note("SetLinkDNS %d %v", i, a)
}
func (f *fakeResolved) SetLinkDomains(i int32, d []resolvedDomain) *dbus.Error {
	return f.note("SetLinkDomains %d %v", i, d)
}
func (f *fakeResolved) SetLinkDefaultRoute(i int32, on bool) *dbus.Error {
	return f.note("SetLinkDefaultRoute %d %v", i, on)
}
func (f *fakeResolved) SetLinkDNSSEC(i int32, m string) *dbus.Error {
	return f.note("SetLinkDNSSEC %d %s", i, m)
}
func (f *fakeResolved) FlushCaches() *dbus.Error { return f.note("FlushCaches") }
func (f *fakeResolved) RevertLink(i int32) *dbus.Error {
	f.mu.Lock()
	delete(f.links, i)
	f.mu.Unlock()
	return f.note("RevertLink %d", i)
}

// Get is org.freedesktop.DBus.Properties.
func (f *fakeResolved) Get(_, name string) (dbus.Variant, *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gets++
	servers := []resolvedServer{{0, 2, []byte{192, 0, 2, 1}}, {999, 10, []byte{0xfe, 0x80, 15: 1}}}
	for i, addrs := range f.links {
		for _, a := range addrs {
			servers = append(servers, resolvedServer{i, a.Family, a.Address})
		}
	}
	return dbus.MakeVariant(servers), nil
}

func (f *fakeResolved) asked() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.gets
}

// busConnections connects to the bus and tells how many have done so up to now.
func busConnections(t *testing.T, bus string) (n int) {
	t.Helper()
	conn, err := dbus.Connect(bus)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Sscanf(conn.Names()[0], ":1.%d", &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func (f *fakeResolved) take() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	calls := f.calls
	f.calls = nil
	slices.Sort(calls)
	return calls
}

// startBus runs a private bus and returns its address.
func startBus(t *testing.T) string {
	t.Helper()
	daemon, err := exec.LookPath("dbus-daemon")
	if err != nil {
		skip(t, "needs dbus-daemon: apt-get install dbus-daemon")
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "bus.conf")
	os.WriteFile(config, []byte(`<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=`+dir+`/bus</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_type="method_call"/><allow send_type="signal"/><allow receive_type="*"/><allow send_destination="*"/></policy></busconfig>`), 0o644)
	cmd := exec.Command(daemon, "--nofork", "--print-address=1", "--config-file="+config)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("bus address: %v", err)
	}
	return strings.TrimSpace(line)
}

func TestSystemdResolved(t *testing.T) {
	bus := startBus(t) // needs PATH, which newSystem replaces
	s := newSystem(t)
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", bus)
	fake := startResolved(t, bus)
	s.write(t, "nameserver 127.0.0.53\n")
	before := facts(t, s.path)
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	d := s.open(t, ModeResolved)
	if got := d.Upstreams(); !slices.Equal(got, ports("192.0.2.1", "fe80::1")) {
		t.Errorf("upstreams before %v", got)
	}
	if err := d.Set(testConfig); err != nil {
		t.Fatal(err)
	}
	addr := []resolvedAddress{{10, testConfig.Server.AsSlice()}}
	want := []string{
		"FlushCaches",
		fmt.Sprintf("SetLinkDNS %d %v", lo.Index, addr),
		fmt.Sprintf("SetLinkDNSSEC %d no", lo.Index),
		fmt.Sprintf("SetLinkDefaultRoute %d false", lo.Index),
		fmt.Sprintf("SetLinkDomains %d [{pilot.internal false} {2.0.0.0.1.0.0.0.c.5.d.f.ip6.arpa true}]", lo.Index),
	}
	if got := fake.take(); !slices.Equal(got, want) {
		t.Errorf("calls\n%q\nwant\n%q", got, want)
	}
	if err := d.Set(testConfig); err != nil || len(fake.take()) != 0 {
		t.Errorf("second Set: %v", err)
	}
	if changed, err := d.Refresh(); changed || err != nil {
		t.Errorf("Refresh: %v, %v", changed, err)
	}
	if got := d.Upstreams(); !slices.Equal(got, ports("192.0.2.1", "fe80::1")) {
		t.Errorf("upstreams %v", got)
	}
	// Looking again and again takes one call each, by the connection that there is.
	connections, asked := busConnections(t, bus), fake.asked()
	for range 5 {
		if changed, err := d.Refresh(); changed || err != nil {
			t.Errorf("Refresh: %v, %v", changed, err)
		}
		if got := d.Upstreams(); !slices.Equal(got, ports("192.0.2.1", "fe80::1")) {
			t.Errorf("upstreams %v", got)
		}
	}
	if n := busConnections(t, bus) - connections; n != 1 { // the one that counts
		t.Errorf("%d connections were made for five looks", n-1)
	}
	if n := fake.asked() - asked; n != 5 {
		t.Errorf("%d questions were asked in five looks", n)
	}
	// A connection that is lost is made anew.
	d.(*fittingDNS).way.(*resolvedDNS).conn.Close()
	if changed, err := d.Refresh(); changed || err != nil {
		t.Errorf("Refresh after the connection was lost: %v, %v", changed, err)
	}
	// A restart of the service forgets the link's settings.
	fake.mu.Lock()
	clear(fake.links)
	fake.mu.Unlock()
	if changed, err := d.Refresh(); !changed || err != nil || len(fake.take()) != len(want) {
		t.Errorf("Refresh after a restart: %v, %v", changed, err)
	}
	if err := d.Restore(); err != nil || d.(*fittingDNS).way.(*resolvedDNS).conn != nil {
		t.Errorf("Restore: %v", err)
	}
	fake.take()
	if err := d.Set(testConfig); err != nil || len(fake.take()) != len(want) { // by a process that is killed then
		t.Errorf("Set again: %v", err)
	}
	d.(*fittingDNS).way.(*resolvedDNS).conn.Close()
	if err := RestoreDNS(s.state, nil); err != nil {
		t.Fatal(err)
	}
	if got := fake.take(); !slices.Equal(got, []string{"FlushCaches", fmt.Sprintf("RevertLink %d", lo.Index)}) {
		t.Errorf("calls of RestoreDNS %q", got)
	}
	if facts(t, s.path) != before {
		t.Error("resolv.conf was touched")
	}
	s.checkClean(t)
}
