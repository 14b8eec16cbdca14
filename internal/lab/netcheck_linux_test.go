// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// What netcheck says of each kind of site is what the site is.
func TestNetcheckOnEachKindOfSite(t *testing.T) {
	m := openMesh(t, 5*time.Millisecond, "eu-1", "eu-2")
	for i, tt := range []struct {
		kind               Kind
		code               string
		mapping, filtering string // of what netcheck may say; empty: anything
		v4                 string
	}{
		{Public, "open", "none", "none", "yes"},
		{EIM, "easy-nat", "endpoint-independent", "", "yes"},
		{ADM, "hard-nat", "address-dependent", "address-dependent", "yes"},
		{APDM, "hard-nat", "address-and-port-dependent", "address-and-port-dependent", "yes"},
		{CGNAT, "easy-nat", "endpoint-independent", "", "yes"},
		{UDPBlocked, "udp-blocked", "unknown", "unknown", "no"},
		{ProxyOnly, "udp-blocked", "unknown", "unknown", "no"},
		{IPv6Only, "firewall", "none", "address-and-port-dependent", ""},
	} {
		site := m.Site(fmt.Sprintf("n%d", i), tt.kind)
		m.join(site)
		// Soon after up not all relays are known.
		var c localapi.Netcheck
		Eventually(t, 30*time.Second, func(context.Context) error {
			if c = pilot[localapi.Netcheck](t, site.Host, "netcheck"); len(c.Relays) < 2 {
				return errors.New("the relays are not known")
			}
			return nil
		})
		t.Logf("%s: %s; %+v", tt.kind, c.Verdict, c)
		if c.Code != tt.code || tt.mapping != "" && c.NAT.Mapping != tt.mapping || tt.filtering != "" && c.NAT.Filtering != tt.filtering || c.Captive {
			t.Errorf("%s: %s, %+v", tt.kind, c.Code, c.NAT)
		}
		if tt.v4 != "" && c.IPv4.UDP != tt.v4 {
			t.Errorf("%s: UDP over IPv4: %s", tt.kind, c.IPv4.UDP)
		}
		for _, r := range c.Relays {
			if r.TLS <= 0 || r.Error != "" {
				t.Errorf("%s: %+v", tt.kind, r)
			}
		}
		if proxied := c.Proxy != ""; proxied != (tt.kind == ProxyOnly) || strings.Contains(c.Proxy, "@") {
			t.Errorf("%s: proxy %q", tt.kind, c.Proxy)
		}
	}
}
