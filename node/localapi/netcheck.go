// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"context"
	"net/http"
	"net/netip"
	"time"
)

// Netcheck is what `pilot netcheck` shows: the network that this host is in. Answers are "yes", "no" or "unknown".
type Netcheck struct {
	At      time.Time       `json:"at"`
	Code    string          `json:"code"`    // stable: no-relays, captive, offline, udp-blocked, open, firewall, easy-nat, hard-nat, unclear
	Verdict string          `json:"verdict"` // what it means, in a sentence
	IPv4    NetcheckFamily  `json:"ipv4"`
	IPv6    NetcheckFamily  `json:"ipv6"`
	NAT     NAT             `json:"nat"`
	Hairpin string          `json:"hairpin"` // the translator lets this host reach itself at its outer address
	Mapping *NetcheckMapped `json:"mapping,omitempty"`
	Relays  []NetcheckRelay `json:"relays"`          // the nearest over UDP first
	Proxy   string          `json:"proxy,omitempty"` // host:port that TCP connections to relays go through
	Captive bool            `json:"captive"`         // somebody else answers in a relay's place
}

// NetcheckFamily is about IPv4 or IPv6.
type NetcheckFamily struct {
	Hosts     []netip.Addr   `json:"hosts,omitempty"`    // addresses of the interfaces
	UDP       string         `json:"udp"`                // datagrams go out and answers come in
	Reflexive netip.AddrPort `json:"reflexive,omitzero"` // where servers see this host
}

// NetcheckMapped is the port that the gateway forwards.
type NetcheckMapped struct {
	Protocol string         `json:"protocol"` // pcp, nat-pmp, upnp
	External netip.AddrPort `json:"external"`
}

// NetcheckRelay is one relay as it is reached from here.
type NetcheckRelay struct {
	Name   string  `json:"name"`
	Region string  `json:"region,omitempty"`
	Home   bool    `json:"home,omitempty"`
	UDP    float64 `json:"udp_ms,omitempty"` // round trip; 0: no answer
	TLS    float64 `json:"tls_ms,omitempty"` // until it proved its key over TCP; 0: it did not
	Error  string  `json:"error,omitempty"`  // why not
}

// Checker finds out what the network is like.
type Checker interface {
	Netcheck(context.Context) (Netcheck, error)
}

// Netcheck finds out what the network is like that the daemon's host is in. It takes some seconds.
func (c *Client) Netcheck(ctx context.Context) (Netcheck, error) {
	return call[Netcheck](ctx, c, http.MethodPost, "/v1/netcheck", struct{}{})
}
