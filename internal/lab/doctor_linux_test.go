// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/node/doctor"
)

// diagnose runs pilot doctor, and returns the codes that it found.
func diagnose(h *Host) (codes []string, r Result, err error) {
	var report doctor.Report
	r = tryPilot(h, "", "doctor")
	if err := json.Unmarshal([]byte(r.Stdout), &report); err != nil {
		return nil, r, fmt.Errorf("%w: %v", err, r)
	}
	for _, f := range report.Findings {
		if f.Code != "" {
			codes = append(codes, f.Code)
		}
	}
	if well := r.Code == 0; well != report.Well || !well && r.Code != 10 {
		return nil, r, fmt.Errorf("exit status %d, and well is %v", r.Code, report.Well)
	}
	return codes, r, nil
}

// What is broken on a host is what doctor finds, and nothing is found once it is mended.
func TestDoctorFindsWhatWasBroken(t *testing.T) {
	m := openTrio(t, "nft", "ip")
	found(t, m.a, "planner")
	join(t, m.a, m.b, "warehouse")
	expect := func(what, code string) {
		t.Helper()
		Eventually(t, 20*time.Second, func(context.Context) error {
			codes, r, err := diagnose(m.b)
			if err != nil {
				return err
			}
			// In the lab there is one clock for all, which nobody keeps.
			codes = slices.DeleteFunc(codes, func(c string) bool { return c == "CLOCK_UNSYNCHRONIZED" || c == "RP_FILTER" })
			if code == "" && len(codes) > 0 || code != "" && !slices.Contains(codes, code) {
				return fmt.Errorf("%s: found %q, want %q: %s", what, codes, code, r.Stdout)
			}
			return nil
		})
	}
	ctx := deadline(t, 2*time.Minute)
	expect("as it should be", "")

	m.b.Must(ctx, "ip", "-6", "route", "add", "unreachable", "default", "table", "52")
	m.b.Must(ctx, "ip", "-6", "rule", "add", "pref", "5270", "lookup", "52")
	expect("a rule that goes first", "ROUTE_MISSING")
	m.b.Must(ctx, "ip", "-6", "rule", "del", "pref", "5270")

	m.b.Must(ctx, "nft", "add table inet filter; add chain inet filter input { type filter hook input priority 0 ; }; add rule inet filter input iifname pilot0 drop")
	expect("a firewall's rule", "FIREWALL_OVERLAY")
	m.b.Must(ctx, "nft", "delete table inet filter")

	const name = "warehouse.pilot.internal"
	m.b.Must(ctx, "sh", "-c", "echo 192.0.2.66 "+name+" >>/etc/hosts")
	expect("another answer for the name", "DNS_SHADOWED")
	m.b.Must(ctx, "sh", "-c", `rest=$(grep -v `+name+` /etc/hosts); echo "$rest" >/etc/hosts`)
	expect("mended", "")

	m.b.Must(ctx, "sysctl", "-q", "-w", "net.ipv6.conf.pilot0.disable_ipv6=1")
	expect("IPv6 off", "IPV6_OFF")
	m.b.Must(ctx, "pilot", "down")
	expect("no daemon", "NOT_RUNNING")
	if text := m.b.Run(ctx, "pilot", "doctor"); text.Code != 10 || !strings.Contains(text.Stdout, "hint: pilot up") {
		t.Errorf("for people: %v", text)
	}
	m.b.Must(ctx, "pilot", "up")
	expect("up again", "")
}
