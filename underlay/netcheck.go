// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/underlay/portmap"
	"github.com/pilot-protocol/pilot/underlay/relay"
	"github.com/pilot-protocol/pilot/underlay/stun"
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
	Proxy   string        // host:port of the proxy that TCP connections to relays take; empty: none
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
	Protocol string         // "pcp", "nat-pmp" or "upnp"; empty: the gateway speaks none, or was not asked
	External netip.AddrPort // zero: it granted nothing
}

// RelayReport is about one relay.
type RelayReport struct {
	ID     uint32
	Name   string
	Region string
	UDP    time.Duration // round trip over UDP; 0: no answer
	TLS    time.Duration // time until it has proved its key on its TCP port; 0: it has not
	Err    string        // why not
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

// answer makes an Answer of what was tested.
func answer(yes bool) Answer {
	if yes {
		return Yes
	}
	return No
}

const (
	// hairpinLimit bounds the wait for a datagram to ourselves, probeLimit a connection to a relay's TCP port.
	hairpinLimit = 700 * time.Millisecond
	probeLimit   = 5 * time.Second
)

// Netcheck finds out anew what the network is like. It takes some seconds, and fails only if ctx ends.
func (u *Underlay) Netcheck(ctx context.Context) (Report, error) {
	s := u.state.Load()
	r := Report{At: time.Now(), Relays: make([]RelayReport, min(len(s.Relays), maxRelays))}
	for _, a := range s.Hosts {
		f := &r.IPv6
		if a.Unmap().Is4() {
			f = &r.IPv4
		}
		f.Hosts = append(f.Hosts, a)
	}
	var mu sync.Mutex
	udp := map[uint32]time.Duration{}
	measured := func(id uint32, rtt time.Duration) {
		u.relays.measure(id, rtt)
		mu.Lock()
		defer mu.Unlock()
		udp[id] = rtt
	}
	var group sync.WaitGroup
	for i := range r.Relays {
		group.Go(func() { r.Relays[i] = u.probe(ctx, s, &s.Relays[i]) })
	}
	found := u.survey(ctx, s, measured, func() {})
	if at := found.v4.reflexive(); at.IsValid() && found.v4.mapping != stun.None {
		limited, cancel := context.WithTimeout(ctx, hairpinLimit)
		r.Hairpin = answer(u.stun.Loop(limited, at))
		cancel()
	}
	group.Wait()
	if err := ctx.Err(); err != nil {
		return r, err
	}
	u.found.Store(found)
	u.publish()
	r.take(found, u.mapping(), udp)
	r.Home = u.relays.homeID()
	if u.proxy != nil && len(s.Relays) > 0 {
		r.Proxy = u.proxy(s.Relays[0].Addresses[0])
	}
	return r, nil
}

// take puts in what was found over UDP.
func (r *Report) take(found *findings, mapped portmap.Mapping, udp map[uint32]time.Duration) {
	r.NAT = found.nat()
	r.Mapping = MappingReport{Protocol: mapped.Protocol, External: mapped.External}
	for _, f := range []struct {
		to   *FamilyReport
		from *family
	}{{&r.IPv4, &found.v4}, {&r.IPv6, &found.v6}} {
		if f.from.asked > 0 {
			f.to.UDP, f.to.Reflexive = answer(len(f.from.answers) > 0), f.from.reflexive()
		}
	}
	for i := range r.Relays {
		relay := &r.Relays[i]
		relay.UDP = udp[relay.ID]
		r.Captive = r.Captive || relay.Err == errStranger.Error()
	}
}

// errStranger says that whoever answers is not the relay.
var errStranger = errors.New("somebody else answers in the relay's place")

// probe connects to a relay's TCP port and looks who answers.
func (u *Underlay) probe(ctx context.Context, s *State, st *identity.RelayStatement) RelayReport {
	r := RelayReport{ID: st.ID(), Name: st.Name, Region: st.Region}
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	err := errors.New("it has no address")
	for _, addr := range st.Addresses {
		began := time.Now()
		if err = u.prove(ctx, s, st, addr); err == nil {
			r.TLS = time.Since(began)
			return r
		}
		if errors.Is(err, errStranger) {
			err = errStranger
			break
		}
	}
	r.Err = err.Error()
	return r
}

// prove makes a TLS handshake in which the relay has to prove its key.
func (u *Underlay) prove(ctx context.Context, s *State, st *identity.RelayStatement, addr string) error {
	raw, err := u.dial(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer raw.Close()
	certificate, err := relay.TLSCertificate(s.Key, time.Now())
	if err != nil {
		return err
	}
	conn := tls.Client(raw, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{relay.ALPN}, Certificates: []tls.Certificate{*certificate},
		// The usual check by name and system roots is replaced by a stricter one: the key in the authority's statement.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if key, err := relay.PeerKey(&cs); err != nil || key != st.Key {
				return errStranger
			}
			return nil
		},
	})
	err = conn.HandshakeContext(ctx)
	var text tls.RecordHeaderError
	if errors.As(err, &text) { // it does not speak TLS
		return errStranger
	}
	return err
}

// Verdict is what a report means: a stable code, and a sentence for the person.
func (r *Report) Verdict() (code, sentence string) {
	udp, tcp := false, false
	for _, x := range r.Relays {
		udp, tcp = udp || x.UDP > 0, tcp || x.TLS > 0
	}
	forwarded := ""
	if r.Mapping.External.IsValid() {
		forwarded = " The gateway forwards a port, which makes it easier."
	}
	switch {
	case len(r.Relays) == 0:
		return "no-relays", "No relay is known, so little can be found out: this host is reached at its own addresses, or not at all."
	case r.Captive:
		return "captive", "Somebody else answers where a relay should: log in to this network with a browser, or ask who filters it."
	case !udp && !tcp:
		return "offline", "No relay answers: this host is offline, or its network lets nothing out; open sessions in the same network may go on."
	case !udp && r.Proxy != "":
		return "udp-blocked", fmt.Sprintf("UDP does not get out: everything goes over a relay, by TLS through the proxy %s, which works and is slower.", r.Proxy)
	case !udp:
		return "udp-blocked", "UDP does not get out: everything goes over a relay, by TLS, which works and is slower."
	case r.NAT.Mapping == stun.None && r.NAT.Filtering == stun.None:
		return "open", "Nothing is in the way: others reach this host directly."
	case r.NAT.Mapping == stun.None:
		return "firewall", "No address is translated, and a firewall lets answers in: direct connections come about with nearly everybody."
	case r.NAT.Mapping == stun.EndpointIndependent:
		return "easy-nat", "Addresses are translated in the easy way: direct connections come about with nearly everybody." + forwarded
	case r.NAT.Mapping.Hard() && forwarded != "":
		return "hard-nat", "Addresses are translated anew for each destination." + forwarded
	case r.NAT.Mapping.Hard():
		return "hard-nat", "Addresses are translated anew for each destination: direct connections come about with hosts in easier networks, " +
			"a relay carries the others."
	}
	return "unclear", "UDP works, and how addresses are translated could not be told: direct connections are tried." + forwarded
}
