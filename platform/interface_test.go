// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

var testInterface = Interface{
	Name: "utun7", MTU: 1420, Address: netip.MustParseAddr("fd5c:1:2::7"), Route: netip.MustParsePrefix("fd5c:1:2::/48"),
}

func TestInterfaceIsChecked(t *testing.T) {
	for name, change := range map[string]func(*Interface){
		"no name": func(i *Interface) { i.Name = "" }, "small MTU": func(i *Interface) { i.MTU = 1279 }, "large MTU": func(i *Interface) { i.MTU = 65536 },
		"IPv4": func(i *Interface) { i.Address = netip.MustParseAddr("192.0.2.1") }, "no address": func(i *Interface) { i.Address = netip.Addr{} },
		"zone": func(i *Interface) { i.Address = netip.MustParseAddr("fe80::1%x") }, "mapped": func(i *Interface) { i.Address = netip.MustParseAddr("::ffff:192.0.2.1") },
		"no route": func(i *Interface) { i.Route = netip.Prefix{} }, "host bits": func(i *Interface) { i.Route = netip.MustParsePrefix("fd5c:1:2::7/48") },
	} {
		i := testInterface
		change(&i)
		if err := ConfigureInterface(i); !errors.Is(err, ErrInterface) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestInterfaceCommands(t *testing.T) {
	check := func(c command, want string) {
		t.Helper()
		if got := strings.Join(c, " "); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	setup, unroute, route := ifconfigCommands(testInterface)
	check(slices.Concat(setup...), "/sbin/ifconfig utun7 mtu 1420 /sbin/ifconfig utun7 inet6 fd5c:1:2::7 prefixlen 128 alias "+
		"/sbin/ifconfig utun7 inet6 -nud /sbin/ifconfig utun7 up")
	check(unroute, "/sbin/route -q -n delete -inet6 fd5c:1:2::/48 -interface utun7")
	check(route, "/sbin/route -q -n add -inet6 fd5c:1:2::/48 -interface utun7")
	mtu, addAddress, setAddress, addRoute, setRoute := netshCommands(testInterface)
	check(mtu, "netsh interface ipv6 set subinterface utun7 mtu=1420 store=active")
	check(addAddress, "netsh interface ipv6 add address interface=utun7 address=fd5c:1:2::7/128 store=active")
	check(setAddress, "netsh interface ipv6 set address interface=utun7 address=fd5c:1:2::7/128 store=active")
	check(addRoute, "netsh interface ipv6 add route prefix=fd5c:1:2::/48 interface=utun7 metric=0 store=active")
	check(setRoute, "netsh interface ipv6 set route prefix=fd5c:1:2::/48 interface=utun7 metric=0 store=active")
	check(netshNoDAD("pilot0"), "netsh interface ipv6 set interface interface=pilot0 dadtransmits=0 routerdiscovery=disabled managedaddress=disabled otherstateful=disabled store=active")
}

func TestCandidates(t *testing.T) {
	for _, good := range []string{"192.0.2.1", "10.0.0.1", "fd00::1", "2001:db8::1", "::ffff:192.0.2.1"} {
		if !candidate(netip.MustParseAddr(good)) {
			t.Errorf("%s refused", good)
		}
	}
	for _, bad := range []string{"127.0.0.1", "::1", "0.0.0.0", "::", "fe80::1", "169.254.1.1", "224.0.0.1", "ff02::1", "255.255.255.255", "::ffff:127.0.0.1"} {
		if candidate(netip.MustParseAddr(bad)) {
			t.Errorf("%s accepted", bad)
		}
	}
	if candidate(netip.Addr{}) {
		t.Error("the zero address accepted")
	}
}

func TestDescriptors(t *testing.T) {
	const sid = "S-1-5-21-1-2-3-1001"
	if got, want := pipeSDDL(sid), "O:"+sid+"D:P(D;;GA;;;NU)(A;;GA;;;SY)(A;;GA;;;BA)(A;;GA;;;"+sid+")"; got != want {
		t.Errorf("pipe: %s", got)
	}
	if got, want := folderSDDL(sid), "O:"+sid+"D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;FA;;;"+sid+")"; got != want {
		t.Errorf("folder: %s", got)
	}
}

func TestNoServiceRefuses(t *testing.T) {
	var s Service = noService{}
	if s.Installed() || s.Running() || !errors.Is(s.Start(), ErrUnsupported) || !errors.Is(s.Stop(), ErrUnsupported) {
		t.Error("a service that isn't there does something")
	}
}
