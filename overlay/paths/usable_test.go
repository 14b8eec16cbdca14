// SPDX-License-Identifier: Apache-2.0

package paths_test

import (
	"net/netip"
	"testing"

	"github.com/pilot-protocol/pilot/overlay/paths"
)

func TestUsable(t *testing.T) {
	overlay := netip.MustParsePrefix("fd12:3456:789a::/48")
	for a, want := range map[string]bool{
		"192.0.2.1:1": true, "10.0.0.1:7745": true, "100.64.0.1:7745": true, "[2001:db8::1]:7745": true, "[fd00::1]:7745": true,
		"[::ffff:192.0.2.1]:1": true, "[64:ff9b::c000:201]:1": true, "192.0.2.1:0": false, "127.0.0.1:1": false,
		"[::ffff:127.0.0.1]:1": false, "[fd12:3456:789a::1]:1": false, "169.254.169.254:80": false, "[fe80::1]:1": false,
		"[fd00:ec2::254]:80": false, "255.255.255.255:9": false, "[2002:a9fe:a9fe::1]:80": false, "224.0.0.251:5353": false,
	} {
		if got := paths.Usable(netip.MustParseAddrPort(a), overlay); got != want {
			t.Errorf("%s: %v", a, got)
		}
	}
}
