// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/godbus/dbus/v5"
)

// startResolved puts a fake systemd-resolved on a bus.
func startResolved(t *testing.T, bus string) *fakeResolved {
	t.Helper()
	conn, err := dbus.Connect(bus)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	fake := &fakeResolved{links: make(map[int32][]resolvedAddress)}
	conn.Export(fake, resolvedPath, resolvedManager)
	conn.Export(fake, resolvedPath, "org.freedesktop.DBus.Properties")
	if _, err := conn.RequestName(resolvedName, 0); err != nil {
		t.Fatal(err)
	}
	return fake
}

func refreshed(t *testing.T, d DNS, changed bool, mode string) {
	t.Helper()
	if got, err := d.Refresh(); got != changed || err != nil || d.Mode() != mode {
		t.Errorf("Refresh: %v, %v; mode %s", got, err, d.Mode())
	}
}

// At boot the bus, systemd-resolved and its file may come after us.
func TestResolvedComesLate(t *testing.T) {
	bus := startBus(t) // needs PATH, which newSystem replaces
	s := newSystem(t)
	const link = "../run/systemd/resolve/stub-resolv.conf"
	if err := os.Symlink(link, s.path); err != nil {
		t.Fatal(err)
	}
	before := facts(t, s.path)
	d := s.open(t, ModeFile)
	if err := d.Set(testConfig); err != nil {
		t.Fatal(err)
	}
	refreshed(t, d, false, ModeFile)
	fake := startResolved(t, bus)
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", bus)
	refreshed(t, d, true, ModeResolved)
	if calls := fake.take(); len(calls) == 0 || facts(t, s.path) != before {
		t.Errorf("systemd-resolved was told %q; %+v", calls, facts(t, s.path))
	}
	os.MkdirAll(filepath.Join(s.root, "run/systemd/resolve"), 0o755)
	os.WriteFile(filepath.Join(s.root, "run/systemd/resolve/stub-resolv.conf"), []byte("nameserver 127.0.0.53\n"), 0o644)
	refreshed(t, d, false, ModeResolved)
	if err := d.Restore(); err != nil || !slices.ContainsFunc(fake.take(), func(c string) bool { return c[:10] == "RevertLink" }) {
		t.Errorf("not reverted: %v", err)
	}
	s.checkClean(t)
}

// Who administers the host may install a resolver, or take it away, while we run.
func TestResolverIsReplaced(t *testing.T) {
	bus := startBus(t)
	s := newSystem(t)
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", bus)
	startResolved(t, bus)
	s.write(t, "nameserver 127.0.0.53\n")
	d := s.open(t, ModeResolved)
	if err := d.Set(testConfig); err != nil {
		t.Fatal(err)
	}
	refreshed(t, d, false, ModeResolved)
	os.Remove(s.path)
	s.write(t, theirs)
	refreshed(t, d, true, ModeFile)
	if got := s.read(t); got != oursOfTheirs {
		t.Errorf("the file:\n%s", got)
	}
	if got := d.Upstreams(); !slices.Equal(got, ports("192.0.2.1", "192.0.2.2")) {
		t.Errorf("upstreams %v", got)
	}
	os.Remove(s.path)
	s.write(t, "nameserver 127.0.0.53\n# again\n")
	refreshed(t, d, true, ModeResolved)
	if got := s.read(t); got != "nameserver 127.0.0.53\n# again\n" {
		t.Errorf("the file:\n%s", got)
	}
	if err := d.Restore(); err != nil {
		t.Error(err)
	}
	s.checkClean(t)
}

// Another network's client that came after us puts our file back when it ends: what ours was made of counts again.
func TestAnotherNetworkComesAndGoes(t *testing.T) {
	for _, killed := range []bool{false, true} {
		s := newSystem(t)
		s.write(t, theirs)
		before := facts(t, s.path)
		d := s.open(t, ModeFile)
		if err := d.Set(testConfig); err != nil {
			t.Fatal(err)
		}
		var kept []string
		for _, server := range []string{"198.51.100.1", "198.51.100.2"} {
			kept = append(kept, s.read(t))
			s.write(t, "nameserver "+server+"\n")
			refreshed(t, d, true, ModeFile)
			if got := d.Upstreams(); !slices.Equal(got, ports(server)) {
				t.Errorf("upstreams %v", got)
			}
		}
		s.write(t, kept[1])
		refreshed(t, d, true, ModeFile)
		if got := d.Upstreams(); !slices.Equal(got, ports("198.51.100.1")) {
			t.Errorf("upstreams when the second is gone: %v", got)
		}
		s.write(t, kept[0])
		refreshed(t, d, true, ModeFile)
		if got := d.Upstreams(); !slices.Equal(got, ports("192.0.2.1", "192.0.2.2")) {
			t.Errorf("upstreams when both are gone: %v", got)
		}
		var err error
		if killed {
			err = RestoreDNS(s.state, nil)
		} else {
			err = d.Restore()
		}
		if got := facts(t, s.path); err != nil || got != before {
			t.Errorf("after Restore (%v) %+v\nwant %+v", err, got, before)
		}
		s.checkClean(t)
	}
}

// A file of ours that another network's client has put back, after we had gone, names resolvers that we go on asking.
func TestOrphanedFile(t *testing.T) {
	s := newSystem(t)
	s.write(t, oursOfTheirs)
	d := s.open(t, ModeFile)
	if err := d.Set(testConfig); err != nil {
		t.Fatal(err)
	}
	if got := d.Upstreams(); s.read(t) != oursOfTheirs || !slices.Equal(got, ports("192.0.2.1", "192.0.2.2")) {
		t.Errorf("upstreams %v, the file:\n%s", got, s.read(t))
	}
	if err := d.Restore(); err != nil || s.read(t) != theirs[len("# by hand\n"):] {
		t.Errorf("restored: %v\n%s", err, s.read(t))
	}
	s.checkClean(t)
}

// A guard runs as long as something is set that would outlive this process, and hears that it is undone.
func TestGuardIsDismissed(t *testing.T) {
	s := newSystem(t)
	s.write(t, theirs)
	heard := filepath.Join(t.TempDir(), "heard")
	d, err := OpenDNS(Options{StateDir: s.state, Root: s.root, Guard: []string{"/bin/sh", "-c", `read -r word; echo "$word" >"$0"`, heard}})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.Set(testConfig); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(heard); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("it has ended already: %v", err)
		}
		if err := d.Restore(); err != nil {
			t.Fatal(err)
		}
		if word, _ := os.ReadFile(heard); string(word) != "done\n" {
			t.Errorf("it heard %q", word)
		}
		os.Remove(heard)
	}
	// One that is gone is no reason to change nothing, nor to leave anything.
	d, err = OpenDNS(Options{StateDir: s.state, Root: s.root, Guard: []string{"/bin/false"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.Set(testConfig), d.Restore()); err != nil || s.read(t) != theirs {
		t.Errorf("without a guard: %v, the file:\n%s", err, s.read(t))
	}
}
