// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"net/netip"
	"reflect"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ruleset is what nft 1.0.6 printed for rules of each kind.
const ruleset = `{"nftables": [{"metainfo": {"version": "1.0.6", "release_name": "Lester Gooch #5", "json_schema_version": 1}},
{"table": {"family": "inet", "name": "filter", "handle": 1}},
{"chain": {"family": "inet", "table": "filter", "name": "input", "handle": 1, "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}},
{"chain": {"family": "inet", "table": "filter", "name": "forward", "handle": 2, "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
{"chain": {"family": "inet", "table": "filter", "name": "extra", "handle": 3}},
{"rule": {"family": "inet", "table": "filter", "chain": "input", "handle": 4, "expr": [{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "lo"}}, {"accept": null}]}},
{"rule": {"family": "inet", "table": "filter", "chain": "input", "handle": 5, "expr": [{"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": "dport"}}, "right": 7745}}, {"counter": {"packets": 0, "bytes": 0}}, {"drop": null}]}},
{"rule": {"family": "inet", "table": "filter", "chain": "input", "handle": 6, "expr": [{"match": {"op": "==", "left": {"payload": {"protocol": "ip6", "field": "saddr"}}, "right": {"prefix": {"addr": "fd00::", "len": 8}}}}, {"reject": {"type": "icmpx", "expr": "port-unreachable"}}]}},
{"rule": {"family": "inet", "table": "filter", "chain": "input", "handle": 7, "expr": [{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}, {"accept": null}]}},
{"rule": {"family": "inet", "table": "filter", "chain": "input", "handle": 8, "expr": [{"jump": {"target": "extra"}}]}},
{"rule": {"family": "inet", "table": "filter", "chain": "input", "handle": 9, "expr": [{"match": {"op": "!=", "left": {"meta": {"key": "iifname"}}, "right": "pilot0"}}, {"drop": null}]}},
{"rule": {"family": "inet", "table": "filter", "chain": "extra", "handle": 10, "expr": [{"drop": null}]}}]}`

func TestParseRuleset(t *testing.T) {
	got, err := parseRuleset([]byte(ruleset))
	if err != nil {
		t.Fatal(err)
	}
	want := []Chain{{
		Family: "inet", Table: "filter", Name: "input", Hook: "input", Drops: true,
		Refusals: []Refusal{{Match{UDPPort: 7745}}, {Match{Prefix: netip.MustParsePrefix("fd00::/8")}}, {Match{Other: true}}},
		Accepts:  []Match{{Interface: "lo"}, {Other: true}, {Other: true}},
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
	for _, bad := range []string{"", "{", "{}", `{"nftables":7}`, "[]"} {
		if _, err := parseRuleset([]byte(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func FuzzParseRuleset(f *testing.F) {
	f.Add([]byte(ruleset))
	f.Add([]byte(`{"nftables":[{"rule":{"expr":[{"match":{"op":"==","left":{},"right":[]}}]}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		chains, err := parseRuleset(data)
		for _, c := range chains {
			if err != nil || c.Hook != "input" && c.Hook != "output" {
				t.Errorf("%+v, %v", c, err)
			}
		}
	})
}
