// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// BenchmarkFirstPacket measures how long the first packet to a fresh peer takes there and back, handshake included,
// beside the round trip of the underlay. The aim on an idle machine is a median below 3 × the underlay's + 5 ms.
func BenchmarkFirstPacket(b *testing.B) {
	if testing.Short() {
		b.Skip("the lab starts real programs in network namespaces: not in a short run")
	}
	l := New(b)
	Programs(b, "ping")
	m := newTrio(l)
	planner := found(b, m.a, "planner")
	joinBy(b, m.b, "warehouse", planner.Invite)
	underlay := median(pingTimes(b, m.b, "192.0.2.10", 20))

	rounds := 9
	if quick() {
		rounds = 1
	}
	times := make([]float64, 0, rounds)
	for b.Loop() {
		times = times[:0]
		for range rounds {
			// A fresh daemon has no session with anybody.
			pilot[localapi.DownResult](b, m.b, "down")
			pilot[localapi.UpResult](b, m.b, "up")
			times = append(times, pingTimes(b, m.b, planner.Address.String(), 1)...)
		}
	}
	b.ReportMetric(0, "ns/op") // restarts, mostly
	b.ReportMetric(median(times), "ms-first-packet")
	b.ReportMetric(underlay, "ms-underlay-rtt")
	b.ReportMetric(3*underlay+5, "ms-aim")
}

var pingTime = regexp.MustCompile(`time=([0-9.]+) ms`)

// pingTimes returns the round-trip times that ping prints, in milliseconds.
func pingTimes(t testing.TB, h *Host, address string, count int) []float64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out := h.Must(ctx, "ping", "-n", "-i", "0.05", "-W", "5", "-c", strconv.Itoa(count), address)
	var times []float64
	for _, match := range pingTime.FindAllStringSubmatch(out, -1) {
		ms, err := strconv.ParseFloat(match[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		times = append(times, ms)
	}
	if len(times) != count {
		t.Fatalf("%d answers to %d echoes:\n%s", len(times), count, out)
	}
	return times
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
