// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"
)

// The tests in this file show that gateways are what they are called, by nothing but datagrams: which address and
// port the far end sees, and which datagrams from outside arrive.

// endpoint is a UDP socket of a host.
type endpoint struct {
	*net.UDPConn
	t testing.TB
}

func endpointOn(t testing.TB, h *Host, at string) endpoint {
	t.Helper()
	e := endpoint{t: t}
	err := h.In(func() (err error) {
		e.UDPConn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

func (e endpoint) addr() netip.AddrPort { return e.LocalAddr().(*net.UDPAddr).AddrPort() }

func (e endpoint) send(to netip.AddrPort, text string) {
	e.t.Helper()
	if _, err := e.WriteToUDPAddrPort([]byte(text), to); err != nil {
		e.t.Fatal(err)
	}
}

// quiet is how long nothing has to arrive to be taken for lost. The way is a few virtual cables long.
const quiet = 200 * time.Millisecond

// arrivals returns what arrives until nothing does any more: the source of each datagram by its text.
func (e endpoint) arrivals() map[string]netip.AddrPort {
	e.t.Helper()
	got, buffer := map[string]netip.AddrPort{}, make([]byte, 2048)
	for {
		_ = e.SetReadDeadline(time.Now().Add(quiet))
		n, from, err := e.ReadFromUDPAddrPort(buffer)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return got
		case err != nil:
			// An ICMP error on an earlier datagram is no news here.
			continue
		}
		got[string(buffer[:n])] = from
	}
}

// seen sends a datagram and returns the source that it arrives with.
func (e endpoint) seen(at endpoint) netip.AddrPort {
	e.t.Helper()
	text := fmt.Sprint("from ", e.addr())
	e.send(at.addr(), text)
	buffer := make([]byte, 2048)
	_ = at.SetReadDeadline(time.Now().Add(5 * time.Second))
	for {
		n, from, err := at.ReadFromUDPAddrPort(buffer)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			e.t.Fatalf("a datagram from %v to %v is lost", e.addr(), at.addr())
		case err == nil && string(buffer[:n]) == text:
			return from
		}
	}
}

// natLab is a gateway between two inside and two outside hosts, of which the latter have two sockets and one.
type natLab struct {
	t        *testing.T
	wan, lan *Bridge
	gateway  *Gateway
	inside   [2]*Host
	a1, a2   endpoint // two ports of one outside address
	b1       endpoint // of another
	port     int
}

func openNAT(t *testing.T) *natLab {
	l := open(t)
	wan, lan := l.Bridge("wan"), l.Bridge("lan")
	n := &natLab{t: t, wan: wan, lan: lan, port: 40000, gateway: l.Gateway("gateway", wan, "198.51.100.1/24", lan, "192.168.1.1/24", Rules{NAT: true})}
	a, b := l.Host("a"), l.Host("b")
	a.Connect(wan, "198.51.100.10/24")
	b.Connect(wan, "198.51.100.11/24")
	for i := range n.inside {
		n.inside[i] = l.Host(fmt.Sprint("inside", i))
		n.inside[i].Connect(lan, fmt.Sprintf("192.168.1.%d/24", 10+i)).Gateway("192.168.1.1")
	}
	n.a1, n.a2 = endpointOn(t, a, "198.51.100.10:1001"), endpointOn(t, a, "198.51.100.10:1002")
	n.b1 = endpointOn(t, b, "198.51.100.11:1001")
	return n
}

// socket opens a fresh port on an inside host.
func (n *natLab) socket(host int) endpoint {
	n.t.Helper()
	n.port++
	return endpointOn(n.t, n.inside[host], fmt.Sprintf("192.168.1.%d:%d", 10+host, n.port))
}

// mapping finds out how outside ports are chosen. The filtering hides nothing: only what leaves is looked at.
func (n *natLab) mapping() Behaviour {
	n.t.Helper()
	s := n.socket(0)
	a1, a2, b1 := s.seen(n.a1), s.seen(n.a2), s.seen(n.b1)
	if again := s.seen(n.a1); again != a1 {
		n.t.Errorf("a mapping in use changed from %v to %v", a1, again)
	}
	for _, from := range []netip.AddrPort{a1, a2, b1} {
		if from.Addr() != n.gateway.Public() {
			n.t.Errorf("what left came from %v", from)
		}
	}
	switch {
	case a1 != a2:
		return AddressAndPortDependent
	case a1 != b1:
		return AddressDependent
	}
	return EndpointIndependent
}

// filtering finds out who may answer.
func (n *natLab) filtering() Behaviour {
	n.t.Helper()
	s := n.socket(0)
	outside := s.seen(n.a1)
	n.a1.send(outside, "the same")
	n.a2.send(outside, "another port")
	n.b1.send(outside, "another address")
	got := s.arrivals()
	for text, from := range map[string]endpoint{"the same": n.a1, "another port": n.a2, "another address": n.b1} {
		if source, ok := got[text]; ok && source != from.addr() {
			n.t.Errorf("%s came from %v instead of %v", text, source, from.addr())
		}
	}
	_, same := got["the same"]
	_, port := got["another port"]
	_, address := got["another address"]
	switch {
	case same && port && address:
		return EndpointIndependent
	case same && port:
		return AddressDependent
	case same && !address:
		return AddressAndPortDependent
	}
	n.t.Fatalf("a filter that lets in %v is of no kind", got)
	return 0
}

func TestNATKinds(t *testing.T) {
	n := openNAT(t)
	kinds := []Behaviour{EndpointIndependent, AddressDependent, AddressAndPortDependent}
	for _, mapping := range kinds {
		for _, filtering := range kinds {
			t.Run(fmt.Sprintf("%v mapping, %v filtering", mapping, filtering), func(t *testing.T) {
				n.t = t
				n.gateway.Set(Rules{NAT: true, Mapping: mapping, Filtering: filtering})
				if got := n.mapping(); got != mapping {
					t.Errorf("the mapping is %v", got)
				}
				if got := n.filtering(); got != filtering {
					t.Errorf("the filtering is %v", got)
				}
				// Two hosts that use the same port get along.
				n.port++
				var seen []netip.AddrPort
				for i := range n.inside {
					s := endpointOn(t, n.inside[i], fmt.Sprintf("192.168.1.%d:%d", 10+i, n.port))
					seen = append(seen, s.seen(n.a1))
					n.a1.send(seen[i], "answer")
					if _, ok := s.arrivals()["answer"]; !ok {
						t.Errorf("no answer reaches %v by %v", s.addr(), seen[i])
					}
				}
				if seen[0] == seen[1] {
					t.Errorf("two hosts share %v", seen[0])
				}
			})
		}
	}
}

// A path can be made to carry in one direction only.
func TestGatewayDeafens(t *testing.T) {
	n := openNAT(t)
	s := n.socket(0)
	for _, address := range []netip.Addr{{}, n.a1.addr().Addr(), {}} {
		n.gateway.Deafen(address)
		for _, from := range []endpoint{n.a1, n.b1} {
			from.send(s.seen(from), "answer")
			if got := s.arrivals(); (len(got) == 1) != (from.addr().Addr() != address) {
				t.Errorf("deaf for %v: from %v comes %v", address, from.addr(), got)
			}
		}
	}
}

// Datagrams that come before the inside host has sent any must not spoil its later mapping: both ends of a hole punch
// send at about the same time.
func TestNATForgetsWhoCameTooEarly(t *testing.T) {
	n := openNAT(t)
	for _, filtering := range []Behaviour{AddressDependent, AddressAndPortDependent} {
		n.gateway.Set(Rules{NAT: true, Filtering: filtering})
		s := n.socket(0)
		outside := s.seen(n.a1)
		for range 3 {
			n.b1.send(outside, "too early")
		}
		if got := s.arrivals(); len(got) != 0 {
			t.Errorf("%v filtering lets in %v", filtering, got)
		}
		if got := s.seen(n.b1); got != outside {
			t.Errorf("%v filtering: the mapping changed from %v to %v", filtering, outside, got)
		}
		n.b1.send(outside, "in time")
		if _, ok := s.arrivals()["in time"]; !ok {
			t.Errorf("%v filtering: the hole is not open", filtering)
		}
	}
}

func TestNATHairpin(t *testing.T) {
	n := openNAT(t)
	for _, filtering := range []Behaviour{EndpointIndependent, AddressDependent} {
		for _, hairpin := range []bool{true, false} {
			n.gateway.Set(Rules{NAT: true, Filtering: filtering, Hairpin: hairpin})
			s := [2]endpoint{n.socket(0), n.socket(1)}
			outside := [2]netip.AddrPort{s[0].seen(n.a1), s[1].seen(n.a1)}
			s[0].send(outside[1], "first")
			s[1].send(outside[0], "second")
			got := s[0].arrivals()
			if from, ok := got["second"]; ok != hairpin || ok && from != outside[1] {
				t.Errorf("hairpin %v, %v filtering: %v arrives from %v, which is %v outside", hairpin, filtering, got, from, outside[1])
			}
			// The first opened the way for the second only where the filter looks at addresses.
			want := hairpin && filtering == EndpointIndependent
			if got := s[1].arrivals(); (len(got) == 1) != want {
				t.Errorf("hairpin %v, %v filtering: %v arrives", hairpin, filtering, got)
			}
		}
	}
}

func TestNATMappingsEnd(t *testing.T) {
	n := openNAT(t)
	for _, filtering := range []Behaviour{EndpointIndependent, AddressAndPortDependent} {
		rules := Rules{NAT: true, Filtering: filtering, Timeout: 2 * time.Second}
		n.gateway.Set(rules)
		s := n.socket(0)
		outside := s.seen(n.a1)
		arrives := func(what string, want bool) {
			t.Helper()
			n.a1.send(outside, what)
			if _, ok := s.arrivals()[what]; ok != want {
				t.Errorf("%v filtering, %s: arrives: %v", filtering, what, ok)
			}
		}
		for range 6 { // traffic keeps it alive
			time.Sleep(300 * time.Millisecond)
			s.seen(n.a1)
		}
		arrives("in use", true)
		time.Sleep(3500 * time.Millisecond) // longer than the timeout of what was last renewed
		arrives("after its time", false)
		outside = s.seen(n.a1)
		arrives("again", true)
		n.gateway.Flush()
		arrives("flushed", false)
		old := outside
		if outside = s.seen(n.a1); filtering == EndpointIndependent && outside == old {
			t.Errorf("a flushed mapping came back as %v", outside)
		}
		arrives("after the flush", true)

		n.gateway.Renumber("198.51.100.77/24")
		arrives("to the old address", false)
		if outside = s.seen(n.a1); outside.Addr() != netip.MustParseAddr("198.51.100.77") {
			t.Errorf("the address outside did not change: %v", outside)
		}
		arrives("to the new address", true)
		n.gateway.Renumber("198.51.100.1/24")
	}
}

// A home behind a carrier's NAT: what is seen outside is the carrier's, and the stricter of both filters holds.
func TestNATBehindNAT(t *testing.T) {
	n := openNAT(t)
	l := n.gateway.lab
	carrier, lan := l.Bridge("shared"), l.Bridge("home")
	home := l.Gateway("home", carrier, "100.64.0.10/24", lan, "192.168.1.1/24", Rules{NAT: true, Filtering: AddressAndPortDependent})
	outer := l.Gateway("outer", n.wan, "198.51.100.2/24", carrier, "100.64.0.1/24",
		Rules{NAT: true, Filtering: EndpointIndependent, Hairpin: true})
	home.Outside.Gateway("100.64.0.1")
	h := l.Host("h")
	h.Connect(lan, "192.168.1.10/24").Gateway("192.168.1.1")
	s := endpointOn(t, h, "192.168.1.10:7745")
	a1, b1 := s.seen(n.a1), s.seen(n.b1)
	if a1 != b1 || a1.Addr() != outer.Public() {
		t.Errorf("seen as %v and as %v", a1, b1)
	}
	n.a1.send(a1, "the same")
	n.a2.send(a1, "another port")
	if got := s.arrivals(); len(got) != 1 {
		t.Errorf("arrived: %v", got)
	}
}

func TestGatewayFirewall(t *testing.T) {
	n := openNAT(t)
	l := n.gateway.lab
	n.gateway.Outside.Add("2001:db8:1::1/64")
	n.gateway.Inside.Add("2001:db8:2::1/64")
	in, out := l.Host("in6"), l.Host("out6")
	in.Connect(n.lan, "2001:db8:2::10/64").Gateway("2001:db8:2::1")
	out.Connect(n.wan, "2001:db8:1::10/64").Gateway("2001:db8:1::1")
	in6, out6 := endpointOn(t, in, "[2001:db8:2::10]:5001"), endpointOn(t, out, "[2001:db8:1::10]:5001")

	// IPv6 is not translated, and nobody gets in uninvited.
	n.gateway.Set(Rules{})
	out6.send(in6.addr(), "uninvited")
	if got := in6.arrivals(); len(got) != 0 {
		t.Errorf("the firewall lets in %v", got)
	}
	if from := in6.seen(out6); from != in6.addr() {
		t.Errorf("IPv6 is translated to %v", from)
	}
	out6.send(in6.addr(), "answer")
	if got := in6.arrivals(); len(got) != 1 {
		t.Errorf("no answer gets in: %v", got)
	}

	for _, outbound := range []Outbound{AllTraffic, NoUDP, HTTPSOnly} {
		n.gateway.Set(Rules{NAT: true, Outbound: outbound})
		s := n.socket(0)
		s.send(n.a1.addr(), "out")
		in6.send(out6.addr(), "out")
		v4, v6 := len(n.a1.arrivals()) == 1, len(out6.arrivals()) == 1
		if want := outbound == AllTraffic; v4 != want || v6 != want {
			t.Errorf("outbound %d: UDP over IPv4 passes: %v, over IPv6: %v", outbound, v4, v6)
		}
		for _, port := range []uint16{80, 443} {
			want := port == 443 || outbound != HTTPSOnly
			to := netip.AddrPortFrom(n.a1.addr().Addr(), port)
			listener, err := listenOn(l.Hosts()[1], to)
			if err != nil {
				t.Fatal(err)
			}
			conn, err := dialFrom(deadline(t, time.Second), n.inside[0], to)
			if (err == nil) != want {
				t.Errorf("outbound %d: TCP to port %d: %v", outbound, port, err)
			}
			if err == nil {
				_ = conn.Close()
			}
			_ = listener.Close()
		}
	}
}

func TestRulesThatCannotBe(t *testing.T) {
	_, err := Rules{NAT: true, Hairpin: true, Filtering: AddressAndPortDependent}.ruleset("i", "o", netip.IPv4Unspecified(), 1)
	if err == nil {
		t.Error("a hairpin that would never work is accepted")
	}
	kinds := []string{}
	for b := EndpointIndependent; b <= AddressAndPortDependent+1; b++ {
		kinds = append(kinds, b.String())
	}
	slices.Sort(kinds)
	if len(slices.Compact(kinds)) != 4 {
		t.Errorf("names: %v", kinds)
	}
}
