// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"
)

// A network with a coordinator and nothing else has one relay at one address. Its second port is enough to tell the kinds of
// NATs apart: where one side has an easy one a direct path comes about, and where there is none it is said why.
func TestOneRelay(t *testing.T) {
	m := openMesh(t, 5*time.Millisecond)
	home, symmetric, other := m.Site("home", EIM), m.Site("sym1", APDM), m.Site("sym2", APDM)
	m.join(home, symmetric, other)
	for site, want := range map[*Site]string{
		home: "endpoint-independent", symmetric: "address-and-port-dependent", other: "address-and-port-dependent",
	} {
		Eventually(t, 30*time.Second, func(context.Context) error {
			s, err := status(site.Host)
			if err == nil && (s.Self.NAT == nil || s.Self.NAT.Mapping != want || len(s.Self.Relays) != 1) {
				err = fmt.Errorf("%s: %+v with the relays %+v", site.Kind, s.Self.NAT, s.Self.Relays)
			}
			return err
		})
	}
	pairs := [][2]*Site{{home, symmetric}, {symmetric, other}}
	m.trust(pairs...)
	serve(symmetric.Host)
	serve(other.Host)
	for _, pair := range pairs {
		pair[1].WriteFile("index.html", pair[1].Name(), 0o644)
	}
	if x := meet(home, symmetric); x.err != nil || !direct(x.path) {
		t.Errorf("%s and %s: path %q, %v", home.Kind, symmetric.Kind, x.path, x.err)
	} else {
		t.Logf("%s and %s: direct after %v", home.Kind, symmetric.Kind, x.direct.Round(time.Millisecond))
	}

	ctx, stop := context.WithCancel(t.Context())
	var sending sync.WaitGroup
	defer sending.Wait()
	defer stop()
	sending.Go(func() { symmetric.Run(ctx, "ping", "-q", "-i", "0.2", other.Name()) })
	for _, way := range [][2]*Site{{symmetric, other}, {other, symmetric}} {
		Eventually(t, 20*time.Second, func(context.Context) error {
			p, err := peer(way[0].Host, way[1].Name())
			if err == nil && (!relayed(p.Path) || p.Why != "both-hard-nat") {
				err = fmt.Errorf("%s to %s: path %q, why %q", way[0].Kind, way[1].Kind, p.Path, p.Why)
			}
			return err
		})
	}
}
