// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

// Each kind of site reaches a public server in the ways that its name says, and in no other.
func TestInternetKinds(t *testing.T) {
	l := open(t)
	n := l.Internet()
	server := n.Server("server")
	v4, v6 := netip.MustParsePrefix(server.IPv4()).Addr(), netip.MustParsePrefix(server.IPv6()).Addr()
	n.Delay = 5 * time.Millisecond
	for _, kind := range Kinds() {
		s := n.Site(fmt.Sprint("site", len(n.Hosts())), kind)
		for _, to := range []netip.Addr{v4, v6} {
			family := kind != IPv6Only && kind != ProxyOnly
			if to == v6 {
				family = kind == IPv6Only || kind == Public
			}
			if got := udpPasses(t, s.Host, server.Host, to); got != (family && kind != UDPBlocked) {
				t.Errorf("%s: UDP to %v: %v", kind, to, got)
			}
			if got := tcpPasses(t, s.Host, server.Host, to); got != family {
				t.Errorf("%s: TCP to %v: %v", kind, to, got)
			}
		}
	}
}

// Hosts of one network reach each other without their gateway; two customers of one carrier only through it.
func TestInternetNeighbours(t *testing.T) {
	l := open(t)
	n := l.Internet()
	a := n.Site("a", APDM)
	b := n.Beside("b", a)
	if to := netip.MustParseAddr("192.168.1.11"); !udpPasses(t, a.Host, b.Host, to) {
		t.Error("two hosts of one network don't reach each other")
	}
	c := n.Site("c", CGNAT)
	d := n.Customer("d", c)
	server := n.Server("server")
	to := endpointOn(t, server.Host, at(server.IPv4(), 7001))
	var sockets [2]endpoint
	var outside [2]netip.AddrPort
	for i, s := range []*Site{c, d} {
		sockets[i] = endpointOn(t, s.Host, "192.168.1.10:7745")
		sockets[i].send(to.addr(), s.Name())
		outside[i] = to.arrivals()[s.Name()]
	}
	if outside[0] == outside[1] || outside[0].Addr() != outside[1].Addr() || outside[0].Addr() != c.Carrier.Public() {
		t.Errorf("two customers are seen as %v", outside)
	}
	for range 2 { // the first opens the own home's router
		sockets[0].send(outside[1], "hairpin")
		sockets[1].send(outside[0], "hairpin")
	}
	for i := range sockets {
		if from := sockets[i].arrivals()["hairpin"]; from != outside[1-i] {
			t.Errorf("the other customer's datagram comes from %v instead of %v", from, outside[1-i])
		}
	}
}

// at is the host and port of an address in CIDR form.
func at(cidr string, port uint16) string {
	return netip.AddrPortFrom(netip.MustParsePrefix(cidr).Addr(), port).String()
}

func udpPasses(t *testing.T, from, to *Host, at netip.Addr) bool {
	t.Helper()
	there := endpointOn(t, to, netip.AddrPortFrom(at, 7001).String())
	defer there.Close()
	local := netip.IPv4Unspecified()
	if at.Is6() {
		local = netip.IPv6Unspecified()
	}
	here := endpointOn(t, from, netip.AddrPortFrom(local, 7001).String())
	defer here.Close()
	begin := time.Now()
	if _, err := here.WriteToUDPAddrPort([]byte("ping"), there.addr()); err != nil {
		return false
	}
	source, ok := there.arrivals()["ping"]
	if !ok {
		return false
	}
	there.send(source, "pong")
	_, ok = here.arrivals()["pong"]
	if ok && time.Since(begin) < 10*time.Millisecond {
		t.Error("the answer was faster than the delay allows")
	}
	return ok
}

func tcpPasses(t *testing.T, from, to *Host, at netip.Addr) bool {
	t.Helper()
	listener, err := listenOn(to, netip.AddrPortFrom(at, 7002))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := dialFrom(deadline(t, time.Second), from, netip.AddrPortFrom(at, 7002))
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// A proxy that does not check its password would prove nothing.
func TestProxyWantsThePasswordOfTheMoment(t *testing.T) {
	l := open(t)
	n := l.Internet()
	server, s := n.Server("server"), n.Site("s", ProxyOnly)
	to := netip.AddrPortFrom(netip.MustParsePrefix(server.IPv4()).Addr(), 443)
	listener, err := listenOn(server.Host, to)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for conn, err := listener.Accept(); err == nil; conn, err = listener.Accept() {
			fmt.Fprintln(conn, "hello")
			_ = conn.Close()
		}
	}()

	ask := func(method, target, credentials string) (status int, said string) {
		t.Helper()
		conn, err := dialFrom(deadline(t, 5*time.Second), s.Host, netip.MustParseAddrPort(homeRouter+":3128"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: %[2]s\r\n", method, target)
		if credentials != "" {
			fmt.Fprintf(conn, "Proxy-Authorization: Basic %s\r\n", base64.StdEncoding.EncodeToString([]byte(credentials)))
		}
		fmt.Fprint(conn, "\r\n")
		in := bufio.NewReader(conn)
		answer, err := http.ReadResponse(in, &http.Request{Method: method})
		if err != nil {
			t.Fatal(err)
		}
		if answer.StatusCode == http.StatusOK {
			said, _ = in.ReadString('\n')
		}
		return answer.StatusCode, said
	}
	current := func() string {
		text, err := os.ReadFile(s.Proxy.File())
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}

	old := current()
	if status, said := ask("CONNECT", to.String(), old); status != http.StatusOK || said != "hello\n" {
		t.Errorf("with the password: %d %q", status, said)
	}
	for what, want := range map[[3]string]int{
		{"CONNECT", to.String(), ""}:                http.StatusProxyAuthRequired,
		{"CONNECT", to.String(), old + "x"}:         http.StatusProxyAuthRequired,
		{"CONNECT", "198.51.100.10:1", old}:         http.StatusBadGateway,
		{"CONNECT", "server.example:443", old}:      http.StatusBadGateway,
		{"GET", "http://" + to.String() + "/", old}: http.StatusMethodNotAllowed,
	} {
		if status, _ := ask(what[0], what[1], what[2]); status != want {
			t.Errorf("%v: %d instead of %d", what, status, want)
		}
	}

	s.Proxy.Rotate()
	if status, _ := ask("CONNECT", to.String(), old); status != http.StatusProxyAuthRequired {
		t.Errorf("the old password: %d", status)
	}
	if status, _ := ask("CONNECT", to.String(), current()); status != http.StatusOK {
		t.Errorf("the new password: %d", status)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s.Proxy.RotateEvery(ctx, 50*time.Millisecond)
	last := current()
	Eventually(t, 5*time.Second, func(context.Context) error {
		if current() == last {
			return fmt.Errorf("the password stays")
		}
		return nil
	})
	if c := s.Proxy.Counts(); c.Opened != 2 || c.Refused != 3 || c.Failed != 3 {
		t.Errorf("the counts: %+v", c)
	}
}
