// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/underlay"
	"github.com/pilot-protocol/pilot/underlay/stun"
)

func TestNetcheck(t *testing.T) {
	d := startDaemon(t, t.TempDir())
	if _, err := d.Netcheck(t.Context()); code(err) != localapi.CodeNotUp {
		t.Errorf("before up: %v", err)
	}
	if _, err := d.Up(t.Context(), localapi.UpRequest{Name: "planner", CoordinatorListen: listenLoopback}); err != nil {
		t.Fatal(err)
	}
	var c localapi.Netcheck
	for end := time.Now().Add(20 * time.Second); len(c.Relays) == 0 && time.Now().Before(end); { // the coordinator names its relay soon
		var err error
		if c, err = d.Netcheck(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if len(c.Relays) != 1 || c.Relays[0].UDP <= 0 || c.Relays[0].TLS <= 0 || c.Relays[0].Error != "" || c.Captive {
		t.Errorf("%+v", c)
	}
	if c.IPv4.UDP != "yes" || c.NAT.Mapping == "" || c.Verdict == "" || c.At.IsZero() {
		t.Errorf("%+v", c)
	}
}

func TestDescribeReport(t *testing.T) {
	seen := netip.MustParseAddrPort("203.0.113.7:7745")
	c := describeReport(&underlay.Report{
		IPv4: underlay.FamilyReport{UDP: underlay.Yes, Reflexive: seen}, NAT: underlay.NAT{Mapping: stun.EndpointIndependent},
		Mapping: underlay.MappingReport{Protocol: "upnp", External: seen}, Home: 2, Hairpin: underlay.No,
		Relays: []underlay.RelayReport{{ID: 1, Name: "silent", Err: "refused"}, {ID: 2, Name: "far", UDP: 80 * time.Millisecond}, {ID: 3, Name: "near", UDP: time.Millisecond}},
	})
	if c.Code != "easy-nat" || c.IPv4.UDP != "yes" || c.IPv6.UDP != "unknown" || c.IPv4.Reflexive != seen || c.IPv6.Reflexive.IsValid() || c.Hairpin != "no" ||
		c.Mapping.Protocol != "upnp" || c.NAT.Mapping != "endpoint-independent" {
		t.Errorf("%+v", c)
	}
	if r := c.Relays; r[0].Name != "near" || r[1].Name != "far" || !r[1].Home || r[1].UDP != 80 || r[2].Name != "silent" || r[2].Error != "refused" {
		t.Errorf("%+v", r)
	}
	if c := describeReport(&underlay.Report{}); c.Code != "no-relays" || c.Relays == nil || c.Mapping != nil {
		t.Errorf("%+v", c)
	}
}
