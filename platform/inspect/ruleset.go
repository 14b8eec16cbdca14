// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// parseRuleset reads what "nft --json list ruleset" prints (libnftables-json(5)) and returns the chains that packets
// from and to this host pass, in families that carry IPv6 or the underlay. A rule of which not all is understood is no
// refusal, and no acceptance that is free of conditions: it is kept as a match with Other.
func parseRuleset(data []byte) ([]Chain, error) {
	var top struct {
		Nftables []struct {
			Chain *nftChain `json:"chain"`
			Rule  *nftRule  `json:"rule"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal(data, &top); err != nil {
		return nil, fmt.Errorf("the firewall's rules can't be read: %w", err)
	}
	if top.Nftables == nil {
		return nil, errors.New("the firewall's rules can't be read: no list of them")
	}
	var chains []Chain
	for _, o := range top.Nftables {
		if c := o.Chain; c != nil && (c.Hook == "input" || c.Hook == "output") && slices.Contains([]string{"ip", "ip6", "inet"}, c.Family) {
			chains = append(chains, Chain{Family: c.Family, Table: c.Table, Name: c.Name, Hook: c.Hook, Drops: c.Policy == "drop"})
		}
	}
	for _, o := range top.Nftables {
		if o.Rule == nil {
			continue
		}
		for i := range chains {
			if c := &chains[i]; c.Family == o.Rule.Family && c.Table == o.Rule.Table && c.Name == o.Rule.Chain {
				c.add(o.Rule.Expr)
			}
		}
	}
	return chains, nil
}

type nftChain struct {
	Family string `json:"family"`
	Table  string `json:"table"`
	Name   string `json:"name"`
	Hook   string `json:"hook"`
	Policy string `json:"policy"`
}

type nftRule struct {
	Family string                       `json:"family"`
	Table  string                       `json:"table"`
	Chain  string                       `json:"chain"`
	Expr   []map[string]json.RawMessage `json:"expr"`
}

// add takes a rule into the chain.
func (c *Chain) add(expressions []map[string]json.RawMessage) {
	var m Match
	verdict := ""
	for _, e := range expressions {
		for kind, body := range e {
			switch kind {
			case "accept", "drop", "reject":
				verdict = kind
			case "jump", "goto":
				verdict = "accept" // somewhere else it may be
				m.Other = true
			case "match":
				m.add(body)
			case "counter", "log", "comment":
			default:
				m.Other = true
			}
		}
	}
	switch verdict {
	case "drop", "reject":
		c.Refusals = append(c.Refusals, Refusal{m})
	case "accept":
		c.Accepts = append(c.Accepts, m)
	}
}

// add takes one comparison into the match.
func (m *Match) add(body json.RawMessage) {
	var x struct {
		Op   string `json:"op"`
		Left struct {
			Meta    *struct{ Key string } `json:"meta"`
			Payload *struct {
				Protocol string `json:"protocol"`
				Field    string `json:"field"`
			} `json:"payload"`
		} `json:"left"`
		Right json.RawMessage `json:"right"`
	}
	if json.Unmarshal(body, &x) != nil || x.Op != "==" {
		m.Other = true
		return
	}
	switch {
	case x.Left.Meta != nil && slices.Contains([]string{"iifname", "oifname", "iif", "oif"}, x.Left.Meta.Key) && m.Interface == "":
		if json.Unmarshal(x.Right, &m.Interface) == nil {
			return
		}
	case x.Left.Payload != nil && x.Left.Payload.Protocol == "udp" && m.UDPPort == 0:
		if json.Unmarshal(x.Right, &m.UDPPort) == nil {
			return
		}
	case x.Left.Payload != nil && x.Left.Payload.Protocol == "ip6" && !m.Prefix.IsValid():
		if p, ok := rulePrefix(x.Right); ok {
			m.Prefix = p
			return
		}
	}
	m.Other = true
}

// rulePrefix reads an address or {"prefix":{"addr":…,"len":…}}.
func rulePrefix(raw json.RawMessage) (netip.Prefix, bool) {
	var text string
	var p struct {
		Prefix *struct {
			Addr netip.Addr `json:"addr"`
			Len  int        `json:"len"`
		} `json:"prefix"`
	}
	if json.Unmarshal(raw, &text) == nil {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return netip.Prefix{}, false
		}
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	if json.Unmarshal(raw, &p) != nil || p.Prefix == nil {
		return netip.Prefix{}, false
	}
	out := netip.PrefixFrom(p.Prefix.Addr, p.Prefix.Len)
	return out, out.IsValid()
}
