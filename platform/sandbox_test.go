// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestNamespaceHint(t *testing.T) {
	for _, c := range []struct{ path, value, want string }{
		{"/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"},
		{"/proc/sys/user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces="},
		{"/proc/sys/user/max_net_namespaces", "0", "sysctl -w user.max_net_namespaces="},
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "apparmor_restrict_unprivileged_userns=0"},
		{"", "", "in a container"},
		{"/proc/sys/kernel/unprivileged_userns_clone", "1", "in a container"},
	} {
		got := NamespaceHint(func(path string) string {
			if path == c.path {
				return c.value
			}
			return ""
		})
		if !strings.Contains(got, c.want) {
			t.Errorf("%s is %q: %s", c.path, c.value, got)
		}
	}
}

func TestSandboxResolvConf(t *testing.T) {
	got := ResolvConf(netip.MustParseAddr("fd5c:1:2::53"), []string{"pilot.internal", "corp.example"})
	if want := "# Written by pilot run.\nnameserver fd5c:1:2::53\nsearch pilot.internal corp.example\n"; got != want {
		t.Errorf("%q", got)
	}
	if r := parseResolvConf([]byte(got)); len(r.Nameservers) != 1 || !slices.Equal(r.Search, []string{"pilot.internal", "corp.example"}) {
		t.Errorf("%+v", r)
	}
	if got := ResolvConf(netip.MustParseAddr("fd5c:1:2::53"), nil); strings.Contains(got, "search") {
		t.Errorf("%q", got)
	}
}

func TestSandboxSockets(t *testing.T) {
	const table = `Num       RefCount Protocol Flags    Type St Inode Path
ffff8a: 00000002 00000000 00010000 0001 01 123 /run/dbus/socket
ffff8a: 00000002 00000000 00010000 0001 01 124 /tmp/.X11-unix/X0
ffff8a: 00000003 00000000 00000000 0001 03 125
ffff8a: 00000002 00000000 00010000 0001 01 126 @/tmp/abstract
ffff8a: 00000002 00000000 00010000 0001 01 127 /tmp/with space
ffff8a: 00000003 00000000 00000000 0001 03 128 /tmp/.X11-unix/X0
ffff8a: 00000002 00000000 00010000 0001 01 129 relative
ffff8a: 00000002 00000000 00010000 0001 01 130 /tmp/../etc/passwd
`
	got := sandboxSockets(table, func(path string) bool { return strings.HasPrefix(path, "/run/") })
	if want := []string{"/tmp/.X11-unix/X0", "/tmp/with space"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if got := sandboxSockets("", func(string) bool { return false }); len(got) != 0 {
		t.Errorf("%q", got)
	}
}

// What a system keeps its programs in is shown, and is no path out of /run.
func TestShownInRun(t *testing.T) {
	for _, name := range shownInRun() {
		if filepath.Base(name) != name || strings.HasPrefix(name, ".") {
			t.Errorf("%q", name)
		}
	}
}
