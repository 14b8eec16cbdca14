// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"slices"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/pilot-protocol/pilot/platform"
)

const resolvPath = "/etc/resolv.conf"

// resolver looks at who answers names on this host, and at who wants to.
func resolver(ctx context.Context) (Resolver, error) {
	e := platform.DNSEnvironment()
	r := Resolver{
		File: e.Resolver(), Symlink: e.Symlink, Bound: e.BindMount, Unwritten: e.ReadOnly, Immutable: immutable(resolvPath),
		Choice: platform.ChooseDNS(e),
	}
	for bus, name := range map[string]string{
		"org.freedesktop.resolve1": "systemd-resolved", "org.freedesktop.NetworkManager": "NetworkManager", "net.connman": "connman",
	} {
		if slices.Contains(e.BusNames, bus) {
			r.Managers = append(r.Managers, name)
		}
	}
	if e.Resolvconf != "" {
		r.Managers = append(r.Managers, "resolvconf")
	}
	slices.Sort(r.Managers)
	r.Claims = claims(ctx)
	return r, nil
}

// immutable says whether the file has the attribute that keeps even root from changing it (chattr +i).
func immutable(path string) bool {
	var s unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_TYPE, &s)
	return err == nil && s.Attributes&unix.STATX_ATTR_IMMUTABLE != 0
}

// claims asks systemd-resolved which domains it routes to which interface; none where it isn't there.
func claims(ctx context.Context) (out []Claim) {
	ctx, cancel := context.WithTimeout(ctx, busLimit)
	defer cancel()
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return nil
	}
	defer conn.Close()
	var owned bool
	const name = "org.freedesktop.resolve1"
	if err := conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, name).Store(&owned); err != nil || !owned {
		return nil // it is not started for this
	}
	var value dbus.Variant
	if err := conn.Object(name, "/org/freedesktop/resolve1").CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0,
		"org.freedesktop.resolve1.Manager", "Domains").Store(&value); err != nil {
		return nil
	}
	var domains []struct {
		Interface int32
		Domain    string
		RouteOnly bool
	}
	if err := value.Store(&domains); err != nil {
		return nil
	}
	names, err := linkNames()
	if err != nil {
		return nil
	}
	for _, d := range domains {
		if d.Interface != 0 { // 0: of the host as a whole
			out = append(out, Claim{names[int(d.Interface)], d.Domain})
		}
	}
	return out
}
