// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"cmp"
	"fmt"
	"time"
)

// Kind is how a site is connected to the Internet.
type Kind string

// The kinds of sites. Each site's network is 192.168.1.0/24 with its host at .10, as everywhere in the world, so that
// the addresses of hosts of different sites are the same.
const (
	// Public hosts have addresses of their own, IPv4 and IPv6, and no firewall.
	Public Kind = "public"
	// EIM is a usual home router: the mapping does not depend on the far end, and only who was sent to may answer.
	EIM Kind = "home NAT"
	// ADM gives each address outside another port, and lets in only that one.
	ADM Kind = "ADM NAT"
	// APDM gives each address and port outside another port, a random one: "symmetric".
	APDM Kind = "symmetric NAT"
	// CGNAT is a home router behind a carrier's NAT, which is endpoint-independent in both ways.
	CGNAT Kind = "carrier NAT"
	// UDPBlocked is a home router that drops all UDP.
	UDPBlocked Kind = "UDP blocked"
	// ProxyOnly has neither a route to the Internet nor DNS, only an HTTP proxy with a password.
	ProxyOnly Kind = "proxy only"
	// Port443Only is a home router that lets out TCP to port 443 and nothing else. It is not among Kinds: to other sites it is
	// like UDPBlocked.
	Port443Only Kind = "only port 443"
	// IPv6Only has no IPv4, and a firewall that lets in only answers.
	IPv6Only Kind = "IPv6 only"
)

// Kinds returns the kinds of sites that differ to each other.
func Kinds() []Kind { return []Kind{Public, EIM, ADM, APDM, CGNAT, UDPBlocked, ProxyOnly, IPv6Only} }

// Internet is a network of sites. Its addresses are 198.51.100.0/24 and 2001:db8::/32.
type Internet struct {
	*Lab
	Backbone *Bridge
	// Delay is added to each frame in each direction between the backbone and the sites that are made from now on.
	Delay time.Duration
	core  *Host
	count int
}

// coreAddress is the router that knows where the networks of sites with IPv6 are.
const coreAddress = "2001:db8::1"

// Internet makes a network without any sites.
func (l *Lab) Internet() *Internet {
	l.tb.Helper()
	n := &Internet{Lab: l, Backbone: l.Bridge("backbone"), count: 9}
	n.core = l.Router("core")
	n.core.Connect(n.Backbone, coreAddress+"/64")
	return n
}

// Site is one place with one host.
type Site struct {
	*Host
	Kind    Kind
	Gateway *Gateway // nil where the host is public, or where there is only a proxy
	Carrier *Gateway // in front of Gateway; nil without a carrier's NAT
	Proxy   *Proxy   // nil where there is none
	Access  *Link    // what connects the site to the backbone
	// Uplink is the cable between the site and the backbone; nil without Internet.Delay.
	Uplink *Emulator
	LAN    *Bridge // nil where the host is public

	number int
	shared *Bridge // between Carrier and Gateway
	hosts  int     // in the LAN
}

// Server makes a host with public addresses and no delay.
func (n *Internet) Server(name string) *Site {
	n.tb.Helper()
	delay := n.Delay
	n.Delay = 0
	defer func() { n.Delay = delay }()
	return n.Site(name, Public)
}

// Site makes a site of a kind. Its host has the site's name, which is at most 10 characters.
func (n *Internet) Site(name string, kind Kind) *Site {
	n.tb.Helper()
	n.count++
	s := &Site{Host: n.Host(name), Kind: kind, number: n.count}
	nat := Rules{NAT: true, Filtering: AddressAndPortDependent}
	switch kind {
	case Public:
		s.Access = s.Connect(n.Backbone, s.IPv4())
		s.Access.Add(s.IPv6())
		s.Access.Gateway(coreAddress)
	case EIM:
		n.home(s, nat)
	case ADM:
		n.home(s, Rules{NAT: true, Mapping: AddressDependent, Filtering: AddressDependent})
	case APDM:
		nat.Mapping = AddressAndPortDependent
		n.home(s, nat)
	case CGNAT:
		n.home(s, nat)
	case UDPBlocked:
		nat.Outbound = NoUDP
		n.home(s, nat)
	case Port443Only:
		nat.Outbound = HTTPSOnly
		n.home(s, nat)
	case ProxyOnly:
		n.proxied(s)
	case IPv6Only:
		n.ipv6(s)
	default:
		n.tb.Fatalf("lab: there are no sites of the kind %q", kind)
	}
	if n.Delay > 0 {
		i := Impairment{Delay: n.Delay}
		s.Uplink = s.Access.Impair(uint64(s.number), i, i)
	}
	return s
}

// IPv4 is the site's address on the backbone in CIDR form; not all kinds of sites have it.
func (s *Site) IPv4() string { return fmt.Sprintf("198.51.100.%d/24", s.number) }

// IPv6 is the site's address on the backbone in CIDR form; not all kinds of sites have it.
func (s *Site) IPv6() string { return fmt.Sprintf("2001:db8::%x/64", s.number) }

const (
	homeRouter = "192.168.1.1"
	homeHost   = "192.168.1.10/24"
)

// home puts the site's host behind a router, and that one behind a carrier's if the kind says so.
func (n *Internet) home(s *Site, rules Rules) {
	n.tb.Helper()
	outside, address, carrier := n.Backbone, s.IPv4(), ""
	if s.Kind == CGNAT {
		s.shared = n.Bridge(fmt.Sprint("shared", s.number))
		s.Carrier = n.Gateway(s.name+"-cgn", n.Backbone, s.IPv4(), s.shared, "100.64.0.1/24",
			Rules{NAT: true, Filtering: EndpointIndependent, Hairpin: true})
		outside, address, carrier = s.shared, "100.64.0.10/24", "100.64.0.1"
	}
	s.LAN = n.Bridge(fmt.Sprint("lan", s.number))
	s.Gateway = n.Gateway(s.name+"-gw", outside, address, s.LAN, homeRouter+"/24", rules)
	if carrier != "" {
		s.Gateway.Outside.Gateway(carrier)
	}
	s.Access = cmp.Or(s.Carrier, s.Gateway).Outside
	s.Connect(s.LAN, homeHost).Gateway(homeRouter)
}

// Beside makes another host in the network of a site that has one: the two share the gateway, and reach each other
// without it.
func (n *Internet) Beside(name string, s *Site) *Site {
	n.tb.Helper()
	s.hosts++
	other := *s
	other.Host = n.Host(name)
	other.Connect(s.LAN, fmt.Sprintf("192.168.1.%d/24", 10+s.hosts)).Gateway(homeRouter)
	return &other
}

// Customer makes another home behind the carrier's NAT of a site of the kind CGNAT.
func (n *Internet) Customer(name string, s *Site) *Site {
	n.tb.Helper()
	s.hosts++
	n.count++
	other := &Site{Host: n.Host(name), Kind: s.Kind, Carrier: s.Carrier, Access: s.Access, Uplink: s.Uplink, number: n.count}
	other.LAN = n.Bridge(fmt.Sprint("lan", other.number))
	other.Gateway = n.Gateway(name+"-gw", s.shared, fmt.Sprintf("100.64.0.%d/24", 10+s.hosts), other.LAN, homeRouter+"/24", s.Gateway.rules)
	other.Gateway.Outside.Gateway("100.64.0.1")
	other.Connect(other.LAN, homeHost).Gateway(homeRouter)
	return other
}

// proxied gives the site's host a proxy and nothing else.
func (n *Internet) proxied(s *Site) {
	n.tb.Helper()
	s.LAN = n.Bridge(fmt.Sprint("lan", s.number))
	p := n.Host(s.name + "-proxy")
	s.Access = p.Connect(n.Backbone, s.IPv4())
	p.Connect(s.LAN, homeRouter+"/24")
	s.Connect(s.LAN, homeHost)
	s.Proxy = p.Proxy(s.Host, "proxy-credentials")
	s.Setenv("HTTPS_PROXY", "http://"+homeRouter+":3128")
	s.Setenv("PILOT_PROXY_AUTH_FILE", s.Proxy.File())
}

// ipv6 gives the site a network of its own and a firewall.
func (n *Internet) ipv6(s *Site) {
	n.tb.Helper()
	s.LAN = n.Bridge(fmt.Sprint("lan", s.number))
	prefix := fmt.Sprintf("2001:db8:%x::", s.number)
	s.Gateway = n.Gateway(s.name+"-gw", n.Backbone, s.IPv6(), s.LAN, prefix+"1/64", Rules{})
	s.Gateway.Outside.Gateway(coreAddress)
	s.Access = s.Gateway.Outside
	s.Connect(s.LAN, prefix+"10/64").Gateway(prefix + "1")
	n.core.must("ip", "-6", "route", "add", prefix+"/64", "via", fmt.Sprintf("2001:db8::%x", s.number))
}
