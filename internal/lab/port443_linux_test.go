// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// A site that lets out TCP to port 443 and nothing else, as guest networks do: the coordinator and the relay are behind that one
// port, told apart by ALPN, and agents there reach others by name, and are reached.
func TestOnlyPort443(t *testing.T) {
	beside(t)
	m := openMesh(t, 5*time.Millisecond)
	guest, home := m.Site("guest", Port443Only), m.Site("home", EIM)
	m.join(guest, home)
	m.trust([2]*Site{guest, home})
	m.admin.Start("python3", "-m", "http.server", "--bind", "::", "80")
	page := "http://" + at(m.admin.IPv4(), 80) + "/"
	Eventually(t, 10*time.Second, func(context.Context) error {
		if r := home.Run(t.Context(), "curl", "-sS", "--max-time", "1", page); !r.OK() {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	if r := guest.Run(t.Context(), "curl", "-sS", "--max-time", "1", page); r.OK() {
		t.Fatalf("the site lets out more than port 443: %v", r)
	}
	for _, s := range []*Site{guest, home} {
		s.WriteFile("index.html", s.Name(), 0o644)
		serve(s.Host)
	}
	get(t, guest.Host, "http://home/", home.Name())
	get(t, home.Host, "http://guest/", guest.Name())
	if r := tryPilot(guest.Host, "", "ping", "home", "--count", "20", "--interval", "50ms"); !r.OK() {
		t.Errorf("%v", r)
	}
	for way, code := range map[[2]*Site]string{{guest, home}: "udp-blocked", {home, guest}: "peer-udp-blocked"} {
		Eventually(t, 20*time.Second, func(context.Context) error {
			p, err := peer(way[0].Host, way[1].Name())
			if err == nil && (!relayed(p.Path) || p.Why != code) {
				err = fmt.Errorf("%s to %s: path %q, why %q", way[0].Name(), way[1].Name(), p.Path, p.Why)
			}
			return err
		})
	}
	st, err := status(guest.Host)
	if err != nil || len(st.Self.Relays) != 1 || st.Self.Relays[0].Transport != "tls" {
		t.Errorf("the relays are %+v, %v", st.Self.Relays, err)
	}
}
