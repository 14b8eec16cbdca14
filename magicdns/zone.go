// SPDX-License-Identifier: Apache-2.0

package magicdns

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/pilot-protocol/pilot/identity"
)

const (
	// ttl in seconds of the zone's records: short, since what a node may see changes.
	ttl = 10
	// negativeTTL is shorter still: a name often appears just after it was missed.
	negativeTTL = 5
)

// State is everything that the answers depend on. It isn't changed after Set.
type State struct {
	// Zone is the network's domain without a final dot, e.g. "pilot.internal".
	Zone string
	// Service is the node's own service address, the address of the zone's apex.
	Service netip.Addr
	// Prefix is the network's /48.
	Prefix netip.Prefix
	// Self are this node's agents, Hosts the others that may be reached.
	Self, Hosts []Host
	// Upstreams are the resolvers to forward to, in order of preference.
	Upstreams []netip.AddrPort
	// Own are the machine's addresses that the server itself is reached on;
	// they are never used as upstreams, nor is any address of the network.
	Own []netip.Addr
	// Apart: the machine that asks upstreams is outside of the network, and no upstream leads back here. That a resolver has
	// an address of the network is no reason to pass it over then.
	Apart bool
}

// Host is an agent that the zone shows.
type Host struct {
	// Name is the agent's name: one label.
	Name string
	// Addr is its address, inside of State.Prefix.
	Addr netip.Addr
	// Services are what it offers.
	Services []Service
}

// Service is published as SVCB and TXT records at _<Name>.<host>.<zone>.
type Service struct {
	// Name without the underscore, e.g. "a2a": a label like an agent's name.
	Name string
	// Port of the service, 1 to 65535.
	Port uint16
	// ALPN are its protocol identifiers (RFC 7301), may be empty.
	ALPN []string
	// Text are the strings of one TXT record, none if empty; at most 255 bytes each.
	Text []string
}

// ReverseZones gives the ip6.arpa zones that cover an IPv6 prefix, without final
// dots: one where its length is a multiple of four, otherwise those of the next
// longer such length (RFC 3596, section 2.5). It gives none for other prefixes.
func ReverseZones(prefix netip.Prefix) []string {
	if !prefix.IsValid() || !prefix.Addr().Is6() || prefix.Addr().Is4In6() {
		return nil
	}
	a := prefix.Masked().Addr().As16()
	nibbles := (prefix.Bits() + 3) / 4
	count := 1 << (nibbles*4 - prefix.Bits())
	zones := make([]string, 0, count)
	for i := range count {
		b := a
		if count > 1 {
			last := nibbles - 1
			b[last/2] |= byte(i) << (4 * (1 - last%2))
		}
		var s strings.Builder
		for n := nibbles - 1; n >= 0; n-- {
			fmt.Fprintf(&s, "%x.", b[n/2]>>(4*(1-n%2))&15)
		}
		zones = append(zones, s.String()+"ip6.arpa")
	}
	return zones
}

// reverseName is the PTR owner of an IPv6 address, with the final dot.
func reverseName(a netip.Addr) string {
	return ReverseZones(netip.PrefixFrom(a, 128))[0] + "."
}

// zone is a State made ready for answers. Immutable.
type zone struct {
	apex      string // lower case, with the final dot
	reverse   []string
	records   map[string]map[uint16][]dns.RR // by owner; a name without records has an empty map
	upstreams []netip.AddrPort
}

func compile(s State, serial uint32, log *slog.Logger) *zone {
	z := &zone{
		apex:    dns.CanonicalName(s.Zone),
		records: make(map[string]map[uint16][]dns.RR),
	}
	if s.Zone == "" {
		z.apex = "" // no zone yet: everything is forwarded
	}
	for _, r := range ReverseZones(s.Prefix) {
		z.reverse = append(z.reverse, r+".")
	}
	if z.apex != "" {
		z.addApexes(s, serial)
	}
	for _, h := range slices.Concat(s.Self, s.Hosts) {
		if z.apex == "" {
			break
		}
		if err := z.addHost(h, s.Prefix); err != nil {
			log.Debug("agent left out of DNS", "err", err)
		}
	}
	for _, u := range s.Upstreams {
		u = netip.AddrPortFrom(u.Addr().Unmap(), u.Port())
		if !upstreamAllowed(u, s) {
			log.Debug("resolver not used as upstream", "addr", u)
		} else if !slices.Contains(z.upstreams, u) {
			z.upstreams = append(z.upstreams, u)
		}
	}
	return z
}

func upstreamAllowed(u netip.AddrPort, s State) bool {
	a := u.Addr().WithZone("")
	if s.Apart {
		return u.IsValid() && u.Port() != 0 && !a.IsUnspecified() && !a.IsMulticast()
	}
	return u.IsValid() && u.Port() != 0 && !a.IsUnspecified() && !a.IsMulticast() && a != s.Service &&
		!s.Prefix.Contains(a) && !slices.ContainsFunc(s.Own, func(o netip.Addr) bool { return o.Unmap().WithZone("") == a })
}

func header(name string, kind uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: ttl}
}

func (z *zone) add(rr dns.RR) {
	h := rr.Header()
	sets := z.touch(h.Name)
	sets[h.Rrtype] = append(sets[h.Rrtype], rr)
}

// touch makes a name exist.
func (z *zone) touch(name string) map[uint16][]dns.RR {
	sets := z.records[name]
	if sets == nil {
		sets = make(map[uint16][]dns.RR)
		z.records[name] = sets
	}
	return sets
}

func (z *zone) addApexes(s State, serial uint32) {
	for _, apex := range append([]string{z.apex}, z.reverse...) {
		soa := &dns.SOA{
			Hdr: header(apex, dns.TypeSOA), Ns: z.apex, Mbox: "hostmaster." + z.apex, Serial: serial,
			Refresh: 3600, Retry: 600, Expire: 86400, Minttl: negativeTTL,
		}
		z.add(soa)
		z.add(&dns.NS{Hdr: header(apex, dns.TypeNS), Ns: z.apex})
	}
	if s.Service.Is6() {
		z.add(&dns.AAAA{Hdr: header(z.apex, dns.TypeAAAA), AAAA: s.Service.AsSlice()})
		if s.Prefix.Contains(s.Service) {
			z.addPointer(s.Service, z.apex)
		}
	}
}

func (z *zone) addHost(h Host, prefix netip.Prefix) error {
	if err := identity.ValidateName(h.Name); err != nil {
		return fmt.Errorf("host name %q: %w", h.Name, err)
	}
	if !h.Addr.Is6() || h.Addr.Zone() != "" || !prefix.Contains(h.Addr) {
		return fmt.Errorf("host %s: address %v is not in %v", h.Name, h.Addr, prefix)
	}
	name := h.Name + "." + z.apex
	if _, ok := z.records[name]; ok {
		return fmt.Errorf("host %s: the name is there twice", h.Name)
	}
	z.add(&dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: h.Addr.AsSlice()})
	z.addPointer(h.Addr, name)
	var err error
	for _, svc := range h.Services {
		err = errors.Join(err, z.addService(name, svc))
	}
	return err
}

func (z *zone) addPointer(a netip.Addr, name string) {
	owner := reverseName(a)
	if len(z.records[owner][dns.TypePTR]) == 0 {
		z.add(&dns.PTR{Hdr: header(owner, dns.TypePTR), Ptr: name})
	}
	// The names between the owner and the zone exist too, without records (RFC 8020).
	for _, apex := range z.reverse {
		if !dns.IsSubDomain(apex, owner) {
			continue
		}
		for rest := owner; len(rest) > len(apex); rest = rest[2:] {
			z.touch(rest)
		}
	}
}

func (z *zone) addService(host string, svc Service) error {
	if err := identity.ValidateName(svc.Name); err != nil {
		return fmt.Errorf("service %q of %s: %w", svc.Name, host, err)
	}
	name := "_" + svc.Name + "." + host
	if svc.Port != 0 {
		rr := &dns.SVCB{Hdr: header(name, dns.TypeSVCB), Priority: 1, Target: host}
		if len(svc.ALPN) > 0 {
			rr.Value = append(rr.Value, &dns.SVCBAlpn{Alpn: svc.ALPN})
		}
		rr.Value = append(rr.Value, &dns.SVCBPort{Port: svc.Port})
		z.add(rr)
	}
	if len(svc.Text) > 0 {
		text := make([]string, len(svc.Text))
		for i, s := range svc.Text {
			if len(s) > 255 {
				return fmt.Errorf("service %s of %s: text of %d bytes is too long", svc.Name, host, len(s))
			}
			// The library reads backslashes as escapes.
			text[i] = strings.ReplaceAll(s, `\`, `\\`)
		}
		z.add(&dns.TXT{Hdr: header(name, dns.TypeTXT), Txt: text})
	}
	return nil
}

// apexOf is the own zone that a canonical name lies in, "" for none.
func (z *zone) apexOf(name string) string {
	if z.apex != "" && dns.IsSubDomain(z.apex, name) {
		return z.apex
	}
	for _, r := range z.reverse {
		if z.apex != "" && dns.IsSubDomain(r, name) {
			return r
		}
	}
	return ""
}

// answer fills in the reply to a question inside the own zone apex. name is the
// canonical name to look up; the records are given under the question's own name.
// It tells whether the name exists.
func (z *zone) answer(m *dns.Msg, q dns.Question, name, apex string) bool {
	m.Authoritative = true
	sets, exists := z.records[name]
	if !exists {
		m.Rcode = dns.RcodeNameError
	}
	rrs := sets[q.Qtype]
	if q.Qtype == dns.TypeANY {
		for _, kind := range []uint16{dns.TypeAAAA, dns.TypePTR, dns.TypeSVCB, dns.TypeTXT, dns.TypeSOA} {
			if rrs = sets[kind]; len(rrs) > 0 {
				break
			}
		}
	}
	for _, rr := range rrs {
		rr = dns.Copy(rr)
		rr.Header().Name = q.Name
		m.Answer = append(m.Answer, rr)
	}
	if len(rrs) == 0 {
		for _, rr := range z.records[apex][dns.TypeSOA] {
			rr = dns.Copy(rr)
			rr.Header().Ttl = negativeTTL
			m.Ns = append(m.Ns, rr)
		}
	}
	return exists
}
