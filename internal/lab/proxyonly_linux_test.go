// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// A host with no UDP, no DNS and nothing but a proxy whose password changes all the time loses no packet. When the
// proxy ends all its tunnels, new ones are opened with the password of that moment.
func TestProxyOnlyWithChangingPassword(t *testing.T) {
	beside(t)
	m := openMesh(t, 5*time.Millisecond, "eu-1", "eu-2")
	agent, warehouse := m.Site("agent", ProxyOnly), m.Site("warehouse", EIM)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	agent.Proxy.RotateEvery(ctx, 5*time.Second)
	m.join(agent, warehouse)
	m.trust([2]*Site{agent, warehouse})
	if got := agent.Run(ctx, "ip", "route", "show", "default"); got.Stdout != "" {
		t.Fatalf("the host has a way out: %v", got)
	}

	pings := func() (sent, received int) {
		t.Helper()
		r := tryPilot(agent.Host, "", "ping", "warehouse", "--count", "100", "--interval", "200ms")
		lines := strings.Split(strings.TrimSpace(r.Stdout), "\n")
		var last struct {
			Summary struct{ Sent, Received int }
		}
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || !r.OK() {
			t.Fatalf("%v: %v", err, r)
		}
		if !strings.Contains(r.Stdout, "relay eu-") {
			t.Errorf("the path is not over a relay: %v", r)
		}
		return last.Summary.Sent, last.Summary.Received
	}
	if sent, received := pings(); sent != 100 || received != 100 {
		t.Errorf("%d echoes sent, %d received", sent, received)
	}
	before := agent.Proxy.Counts()
	agent.Proxy.Cut()
	begin := time.Now()
	Eventually(t, 20*time.Second, func(context.Context) error {
		return m.command(agent.Host, "", "ping", "warehouse", "--count", "1", "--timeout", "1s")
	})
	t.Logf("all tunnels cut: the next answer came after %v", time.Since(begin).Round(10*time.Millisecond))
	after := agent.Proxy.Counts()
	if after.Opened == before.Opened {
		t.Errorf("no new tunnel was opened: %+v, %+v", before, after)
	}
	t.Logf("the proxy: %s", fmt.Sprintf("%+v", after))
}
