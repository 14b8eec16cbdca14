// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"context"
	"math"
	"slices"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/underlay"
)

// netcheckLimit bounds one check.
const netcheckLimit = 20 * time.Second

// Netcheck finds out what the network is like that this host is in.
func (n *Node) Netcheck(ctx context.Context) (localapi.Netcheck, error) {
	var under Underlay
	if err := n.view(func(m *membership) error { under = m.engine.underlay; return nil }); err != nil {
		return localapi.Netcheck{}, explain(err)
	}
	ctx, cancel := context.WithTimeout(ctx, netcheckLimit)
	defer cancel()
	r, err := under.Netcheck(ctx)
	if err != nil {
		return localapi.Netcheck{}, &localapi.Error{Code: localapi.CodeTimeout, Message: "the check did not end in time"}
	}
	return describeReport(&r), nil
}

// describeReport is how people and programs see a report.
func describeReport(r *underlay.Report) localapi.Netcheck {
	c := localapi.Netcheck{
		At: r.At, IPv4: describeFamily(&r.IPv4), IPv6: describeFamily(&r.IPv6), Hairpin: r.Hairpin.String(),
		NAT:   localapi.NAT{Mapping: r.NAT.Mapping.String(), Filtering: r.NAT.Filtering.String()},
		Proxy: r.Proxy, Captive: r.Captive, Relays: []localapi.NetcheckRelay{},
	}
	c.Code, c.Verdict = r.Verdict()
	if r.Mapping.External.IsValid() {
		c.Mapping = &localapi.NetcheckMapped{Protocol: r.Mapping.Protocol, External: r.Mapping.External}
	}
	for _, x := range r.Relays {
		c.Relays = append(c.Relays, localapi.NetcheckRelay{
			Name: x.Name, Region: x.Region, Home: x.ID == r.Home, UDP: milliseconds(x.UDP), TLS: milliseconds(x.TLS), Error: x.Err,
		})
	}
	distance := func(x localapi.NetcheckRelay) float64 {
		if x.UDP == 0 {
			return math.Inf(1)
		}
		return x.UDP
	}
	slices.SortStableFunc(c.Relays, func(a, b localapi.NetcheckRelay) int { return cmp.Compare(distance(a), distance(b)) })
	return c
}

func describeFamily(f *underlay.FamilyReport) localapi.NetcheckFamily {
	return localapi.NetcheckFamily{Hosts: f.Hosts, UDP: f.UDP.String(), Reflexive: f.Reflexive}
}
