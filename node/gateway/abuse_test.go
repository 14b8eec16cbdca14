// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// inward are ways to name this host, its links, its networks and the services of clouds.
func inward() []string {
	return []string{
		"127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.1.1", "169.254.169.254",
		"100.100.100.200", "168.63.129.16", "224.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.2.1",
		"::1", "::", "fe80::1", "ff02::1", "fd00:ec2::254", "fc00::1", "fec0::1",
		"::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:10.0.0.1", "::127.0.0.1", "::ffff:0:127.0.0.1",
		"64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:a9fe:a9fe::1", "fe80::5efe:127.0.0.1",
		"localhost", "LOCALHOST.", "localhost.localdomain", "ip6-localhost",
		"2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0x7f.1", "017700000001",
		// Names of the test's resolver, for these addresses.
		"loopback.example.com", "metadata.example.com", "mapped.example.com", "private.example.com", "both.example.com",
	}
}

// resolveInward is a server of names that all mean something inside.
func resolveInward(t *testing.T) *net.Resolver {
	t.Helper()
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		buf := make([]byte, 1500)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			if answer := answerInward(buf[:n]); answer != nil {
				_, _ = server.WriteTo(answer, from)
			}
		}
	}()
	t.Cleanup(func() { server.Close(); <-ended })
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", server.LocalAddr().String())
	}}
}

func answerInward(query []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(query) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	inner := map[string][]string{
		"loopback.example.com.": {"127.0.0.1", "::1"}, "metadata.example.com.": {"169.254.169.254", "fd00:ec2::254"},
		"mapped.example.com.": {"::ffff:127.0.0.1"}, "private.example.com.": {"10.0.0.1"}, "both.example.com.": {"127.0.0.1", "169.254.169.254"},
		// As the resolvers of some systems understand them.
		"2130706433.": {"127.0.0.1"}, "0x7f000001.": {"127.0.0.1"}, "0177.0.0.1.": {"127.0.0.1"}, "127.1.": {"127.0.0.1"},
		"0x7f.1.": {"127.0.0.1"}, "017700000001.": {"127.0.0.1"},
	}[strings.ToLower(q.Name.String())]
	m.Response, m.Additionals = true, nil
	if inner == nil {
		m.RCode = dnsmessage.RCodeNameError
	}
	header := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class}
	for _, text := range inner {
		a := netip.MustParseAddr(text)
		switch {
		case a.Is4() && q.Type == dnsmessage.TypeA:
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AResource{A: a.As4()}})
		case a.Is6() && q.Type == dnsmessage.TypeAAAA:
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
		}
	}
	answer, err := m.Pack()
	if err != nil {
		return nil
	}
	return answer
}

// Abuse case 16: this host, its networks and the metadata services of clouds are reached through neither proxy, in whatever
// dress they come, and also where the operator lets the internet be reached.
func TestAbuse16InwardTargets(t *testing.T) {
	// One of them would answer.
	site := serve(t, func(c *net.TCPConn) { _, _ = c.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")) })
	_, port, _ := net.SplitHostPort(site.String())
	number := netip.MustParseAddrPort(site.String()).Port()
	for _, direct := range []bool{false, true} {
		p := start(t, Options{Direct: direct, Resolver: resolveInward(t)})
		for _, host := range inward() {
			want := []byte{replyForbidden}
			if _, err := netip.ParseAddr(host); err != nil {
				want = []byte{replyForbidden, replyNoHost, replyFailed} // a name may just not be there
			}
			if got := p.asked(t, request(commandConnect, host, number)); !strings.Contains(string(want), string(got)) {
				t.Errorf("direct %v: SOCKS5 to %s: reply %d", direct, host, got)
			}
			status, text := p.get(t, "http://"+net.JoinHostPort(host, port)+"/")
			if status != http.StatusForbidden && (status != http.StatusBadGateway || len(want) == 1) {
				t.Errorf("direct %v: HTTP to %s: %d %s", direct, host, status, text)
			}
			head := "CONNECT " + net.JoinHostPort(host, port) + " HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic cGlsb3Q6YSBzZWNyZXQgb2YgdGhlIGRhZW1vbg==\r\n\r\n"
			if got := p.rawHTTP(t, head); strings.HasPrefix(got, "HTTP/1.1 2") {
				t.Errorf("direct %v: CONNECT to %s: %s", direct, host, got)
			}
		}
		if len(p.network.dialed) > 0 {
			t.Errorf("dialled in the network: %v", p.network.dialed)
		}
	}
}

// Names of the network stay in it: what is not there is asked of nobody else.
func TestNamesOfTheNetworkAreNotLeaked(t *testing.T) {
	asked := make(chan string, 10)
	resolver := &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		asked <- "a question"
		return nil, net.ErrClosed
	}}
	p := start(t, Options{Direct: true, Resolver: resolver})
	for _, host := range []string{"nobody", "nobody.pilot.internal", "stranger"} {
		if got := p.asked(t, request(commandConnect, host, 80)); got != replyNoHost && got != replyForbidden {
			t.Errorf("%s: reply %d", host, got)
		}
	}
	if len(asked) > 0 {
		t.Error("another resolver was asked")
	}
}
