// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/pilot-protocol/pilot/netstack"
	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	network = netip.MustParsePrefix("fd5c:1:2::/48")
	ownAddr = netip.MustParseAddr("5.5.5.11")
)

// testEgress makes connections to nobody; this host is 5.5.5.11.
func testEgress(t testing.TB, rules ...string) *egress {
	t.Helper()
	parsed, err := policy.ParseEgress(rules)
	if err != nil {
		t.Fatal(err)
	}
	e := newEgress(parsed, func(a netip.Addr) bool { return a == ownAddr }, time.Now)
	e.dial = func(context.Context, string, string) (net.Conn, error) { return nil, syscall.ECONNREFUSED }
	e.setNetwork(network)
	return e
}

// TestAbuse16Egress: whatever is allowed, what no rule may allow is refused, in every dress of an address.
func TestAbuse16Egress(t *testing.T) {
	e := testEgress(t, "all", "10.0.0.0/8", "0.0.0.0/0", "::/0", "fc00::/7", "evil.test")
	for _, to := range []string{
		"127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "::127.0.0.1",
		"169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "fe80::1", "fe80::a9fe:a9fe", "fd00:ec2::254",
		"100.100.100.200", "168.63.129.16", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255",
		"fd5c:1:2::53", "fd5c:1:2:3::4", "5.5.5.11", "::ffff:5.5.5.11", "192.168.1.1", "172.16.0.1",
	} {
		a := netip.MustParseAddr(to)
		if _, err := e.open(t.Context(), netstack.Flow{Network: "tcp", Destination: netip.AddrPortFrom(a, 80)}); !errors.Is(err, syscall.EACCES) {
			t.Errorf("%v: %v", to, err)
		}
		if e.Admit("evil.test", a, time.Hour) {
			t.Errorf("%v is admitted to an answer", to)
		}
		if why := e.allowed(netip.AddrPortFrom(a, 80)); why == "" {
			t.Errorf("%v may be reached afterwards", to)
		}
	}
	if s := e.Status(); s.Refused == 0 || len(s.Last) != maxRefusals || s.Accepted != 0 || s.Active != 0 {
		t.Errorf("%+v", s)
	}
	// What is as it should be gets as far as the dialler.
	for _, to := range []string{"8.8.8.8", "2a00::8", "::ffff:8.8.8.8", "10.1.2.3", "fd99::1"} {
		if _, err := e.open(t.Context(), netstack.Flow{Network: "tcp", Destination: netip.AddrPortFrom(netip.MustParseAddr(to), 80)}); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%v: %v", to, err)
		}
	}
}

func TestEgressBeforeTheNetworkIsKnown(t *testing.T) {
	rules, _ := policy.ParseEgress([]string{"all"})
	e := newEgress(rules, func(netip.Addr) bool { return false }, time.Now)
	if why := e.allowed(netip.MustParseAddrPort("8.8.8.8:53")); why != whyNetwork {
		t.Errorf("%q", why)
	}
}

// A name opens the way to what it points at, at its ports, as long as the answer is fresh.
func TestEgressPins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := testEgress(t, "a.test:443", "*.b.test:80", "private.test", "10.9.0.0/16:1")
		public, other := netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("8.8.4.4")
		may := func(a netip.Addr, port uint16) bool { return e.allowed(netip.AddrPortFrom(a, port)) == "" }
		if may(public, 443) {
			t.Error("before it was asked for")
		}
		if !e.Ask("a.test") || !e.Ask("x.b.test") || e.Ask("c.test") {
			t.Error("names")
		}
		if !e.Admit("a.test", public, time.Second) || !e.Admit("x.b.test", other, 3*time.Hour) {
			t.Error("admit")
		}
		if !may(public, 443) || may(public, 80) || !may(other, 80) || may(other, 443) || may(netip.MustParseAddr("8.8.8.9"), 443) {
			t.Error("afterwards")
		}
		if !may(netip.MustParseAddr("::ffff:8.8.8.8"), 443) {
			t.Error("the same in other clothes")
		}
		time.Sleep(minPin - time.Nanosecond)
		if !may(public, 443) {
			t.Error("before the end of the least time")
		}
		time.Sleep(time.Nanosecond)
		if may(public, 443) || !may(other, 80) {
			t.Error("after it")
		}
		time.Sleep(maxPin)
		if may(other, 80) {
			t.Error("after the most time")
		}
		// An address that has become this host's own is none that a name leads to.
		e.Admit("a.test", public, time.Hour)
		e.own = func(a netip.Addr) bool { return a == public }
		if may(public, 443) {
			t.Error("an address that is this host's now")
		}
		// A private address needs a rule of its own, and then the name opens its ports too.
		if e.Admit("private.test", netip.MustParseAddr("10.8.0.1"), time.Hour) || may(netip.MustParseAddr("10.8.0.1"), 80) {
			t.Error("a private address that no rule names")
		}
		if !e.Admit("private.test", netip.MustParseAddr("10.9.0.1"), time.Hour) || !may(netip.MustParseAddr("10.9.0.1"), 80) {
			t.Error("a private address that a rule names")
		}
	})
}

func TestPinsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pins{now: time.Now}
		at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{8, 1, byte(i >> 8), byte(i)}) }
		for i := range maxPins + 10 {
			p.add(at(i), "a.test", minPin)
			time.Sleep(time.Millisecond)
		}
		if len(p.byIP) != maxPins || len(p.names(at(0))) != 0 || len(p.names(at(maxPins+9))) != 1 {
			t.Errorf("%d addresses; the first has %v", len(p.byIP), p.names(at(0)))
		}
		for i := range maxPinNames + 3 {
			p.add(at(50), fmt.Sprintf("n%d.test", i), maxPin)
		}
		if n := len(p.names(at(50))); n != maxPinNames {
			t.Errorf("%d names", n)
		}
		time.Sleep(maxPin)
		p.add(at(1), "a.test", minPin)
		if len(p.byIP) != 1 {
			t.Errorf("%d addresses are left of those that were over", len(p.byIP))
		}
	})
}

func TestRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := testEgress(t)
		for i := range 3 * maxRefusals {
			e.Ask(fmt.Sprintf("n%d.test", i))
			time.Sleep(time.Second)
			e.Ask("often.test")
		}
		s := e.Status()
		if s.Refused != 6*maxRefusals || len(s.Last) != maxRefusals || len(s.Rules) != 0 {
			t.Fatalf("%+v", s)
		}
		want := localapi.Refusal{Kind: "dns", Target: "often.test", Why: whyName, Count: 3 * maxRefusals, Time: time.Now().UTC()}
		if s.Last[0] != want || s.Last[1].Target != fmt.Sprintf("n%d.test", 3*maxRefusals-1) {
			t.Errorf("%+v", s.Last[:2])
		}
		e.never(netstack.Flow{Network: "udp", Destination: netip.MustParseAddrPort("127.0.0.1:53")})
		if last := e.Status().Last[0]; last.Kind != "udp" || last.Target != "127.0.0.1:53" || last.Why != whyNever {
			t.Errorf("%+v", last)
		}
	})
}

func TestRulesThatCanAllowNothing(t *testing.T) {
	for _, rule := range []string{"127.0.0.1:80", "169.254.169.254", "::1", "[fe80::1]:80", "0.0.0.0"} {
		var e *localapi.Error
		if err := testEgress(t, rule).check(); !errors.As(err, &e) || e.Code != localapi.CodeUsage {
			t.Errorf("%s: %v", rule, err)
		}
	}
	if err := testEgress(t, "all", "8.8.8.8", "10.0.0.0/8", "a.test").check(); err != nil {
		t.Error(err)
	}
}
