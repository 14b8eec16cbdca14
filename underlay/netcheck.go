// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"context"
	"net/netip"
	"time"
)

// Report says what the network is like that this host is in.
type Report struct {
	At      time.Time
	IPv4    FamilyReport
	IPv6    FamilyReport
	NAT     NAT
	Hairpin Answer // the translator lets this host reach itself at its outer address
	Mapping MappingReport
	Relays  []RelayReport // as State has them
	Home    uint32        // the home relay's ID; 0: none
	Proxy   string        // host:port of the proxy that TCP connections take; empty: none
	Captive bool          // somebody else answers where a relay should: a portal that wants a login, or a filter
}

// FamilyReport is about one address family.
type FamilyReport struct {
	Hosts     []netip.Addr   // addresses of this host's interfaces
	UDP       Answer         // datagrams go out and answers come in
	Reflexive netip.AddrPort // where servers see this host; zero: nowhere
}

// MappingReport is about what the gateway was asked for.
type MappingReport struct {
	Protocol string         // "pcp", "nat-pmp" or "upnp"; empty: the gateway speaks none
	External netip.AddrPort // zero: it granted nothing
}

// RelayReport is about one relay.
type RelayReport struct {
	ID     uint32
	Name   string
	Region string
	UDP    time.Duration // round trip over UDP; 0: no answer
	TLS    time.Duration // time to connect to its TLS port; 0: not reached
	Err    string        // why the TLS port is not reached
}

// Answer is yes or no, once it is known.
type Answer uint8

// Answers.
const (
	Untested Answer = iota
	No
	Yes
)

// String returns "yes", "no" or "unknown".
func (a Answer) String() string { return [...]string{"unknown", "no", "yes"}[min(a, Yes)] }

// Netcheck finds out anew what the network is like. It takes some seconds, and fails only if ctx ends.
func (u *Underlay) Netcheck(ctx context.Context) (Report, error) {
	s := u.state.Load()
	r := Report{At: time.Now(), Home: u.Status().Home}
	for _, a := range s.Hosts {
		f := &r.IPv6
		if a.Unmap().Is4() {
			f = &r.IPv4
		}
		f.Hosts = append(f.Hosts, a)
	}
	return r, ctx.Err()
}
