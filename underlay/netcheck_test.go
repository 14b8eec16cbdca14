// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/underlay/relay"
	"github.com/pilot-protocol/pilot/underlay/stun"
)

func (p *peer) netcheck() Report {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := p.Netcheck(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	return r
}

func TestNetcheck(t *testing.T) {
	a := newAuthority(t)
	one, dead := a.relay("one"), a.relay("dead")
	dead.close()
	x := a.peer(nil, one, dead)
	x.wait("home", connectedBy(relay.TransportUDP))
	x.state.Hosts = []netip.Addr{netip.MustParseAddr("192.0.2.9")} // as behind a translator
	x.Set(x.state)
	r := x.netcheck()
	if r.IPv4.UDP != Yes || r.IPv6.UDP != Untested || r.Hairpin != Yes || r.Captive || r.Home != one.statement.ID() {
		t.Errorf("%+v", r)
	}
	if want := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), x.Port()); r.IPv4.Reflexive != want {
		t.Errorf("seen at %v", r.IPv4.Reflexive)
	}
	if (r.NAT != NAT{stun.EndpointIndependent, stun.AddressDependent}) {
		t.Errorf("%+v", r.NAT)
	}
	if x := r.Relays[0]; x.UDP == 0 || x.TLS == 0 || x.Err != "" || x.Name != "one" {
		t.Errorf("%+v", x)
	}
	if x := r.Relays[1]; x.UDP != 0 || x.TLS != 0 || x.Err == "" {
		t.Errorf("%+v", x)
	}
	if code, text := r.Verdict(); code != "easy-nat" {
		t.Errorf("%s: %s", code, text)
	}
}

func TestNetcheckWithoutRelays(t *testing.T) {
	u := open(t)
	r, err := u.Netcheck(context.Background())
	if code, _ := r.Verdict(); err != nil || code != "no-relays" {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestNetcheckSeesAPortal(t *testing.T) {
	a := newAuthority(t)
	portal, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer portal.Close()
	go func() {
		for {
			c, err := portal.Accept()
			if err != nil {
				return
			}
			c.Write([]byte("HTTP/1.1 302 Found\r\nLocation: http://portal.example/\r\n\r\n"))
			c.Close()
		}
	}()
	real, other := a.relay("real"), a.relay("other")
	real.set(func() { real.deaf = true })
	for name, to := range map[string]string{"a page": portal.Addr().String(), "another key": other.tcp.Addr().String()} {
		x := a.peer(func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, to)
		}, real)
		r := x.netcheck()
		if code, _ := r.Verdict(); !r.Captive || code != "captive" || r.Relays[0].TLS != 0 {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func TestVerdict(t *testing.T) {
	udp, tls := RelayReport{UDP: time.Millisecond}, RelayReport{TLS: time.Millisecond}
	mapped := MappingReport{Protocol: "pcp", External: netip.MustParseAddrPort("203.0.113.7:1")}
	for want, reports := range map[string][]Report{
		"no-relays":   {{}},
		"offline":     {{Relays: []RelayReport{{}}}},
		"captive":     {{Relays: []RelayReport{tls}, Captive: true}},
		"udp-blocked": {{Relays: []RelayReport{tls}}, {Relays: []RelayReport{tls}, Proxy: "proxy:3128"}},
		"open":        {{Relays: []RelayReport{udp}, NAT: NAT{stun.None, stun.None}}},
		"firewall":    {{Relays: []RelayReport{udp}, NAT: NAT{stun.None, stun.AddressAndPortDependent}}, {Relays: []RelayReport{udp}, NAT: NAT{Mapping: stun.None}}},
		"easy-nat":    {{Relays: []RelayReport{udp}, NAT: NAT{Mapping: stun.EndpointIndependent}, Mapping: mapped}},
		"hard-nat":    {{Relays: []RelayReport{udp}, NAT: NAT{Mapping: stun.AddressDependent}}, {Relays: []RelayReport{udp}, NAT: NAT{Mapping: stun.AddressAndPortDependent}, Mapping: mapped}},
		"unclear":     {{Relays: []RelayReport{udp}}},
	} {
		for _, r := range reports {
			if code, text := r.Verdict(); code != want || text == "" {
				t.Errorf("%s: %s for %+v", code, text, r)
			}
		}
	}
}
