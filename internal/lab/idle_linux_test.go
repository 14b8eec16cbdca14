// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// idleEnv asks for TestIdle and says how many nodes there are.
const idleEnv = "PILOT_LAB_IDLE"

// What nodes cost that have sessions and nothing to say: packets, by the counters of each host's firewall, and
// processor time, by the kernel's account of the process. What is aimed at is fewer than 12 packets a minute, sent
// and received, and less than a thousandth of a core.
func TestIdle(t *testing.T) {
	count, err := strconv.Atoi(os.Getenv(idleEnv))
	if err != nil {
		t.Skipf("takes five minutes: set %s to the number of nodes", idleEnv)
	}
	m := openMesh(t, 0)
	Programs(t, "nft")
	var nodes []*Site
	var pairs [][2]*Site
	for i := range count {
		kind := Public
		if i%4 == 3 {
			kind = EIM
		}
		s := m.Site(fmt.Sprintf("n%d", i), kind)
		nodes = append(nodes, s)
		if i > 0 {
			pairs = append(pairs, [2]*Site{s, nodes[i-1]})
		}
	}
	m.join(nodes...)
	m.trust(pairs...)
	t.Logf("%d nodes are up, %s", count, memoryLeft())
	// A session of each with two neighbours, besides the one with the admin.
	m.each(len(pairs), 4, func(i int) error {
		return m.command(pairs[i][0].Host, "", "ping", pairs[i][1].Name(), "--count", "1")
	})
	for _, s := range nodes {
		s.RunInput(t.Context(), countingRules, "nft", "-f", "-")
	}
	// The first minute after traffic is not idle yet.
	time.Sleep(90 * time.Second)
	const minutes = 3
	before := snapshotCosts(t, nodes)
	time.Sleep(minutes * time.Minute)
	after := snapshotCosts(t, nodes)
	var packets, cpu []float64
	for i := range nodes {
		packets = append(packets, float64(after[i].packets-before[i].packets)/minutes)
		cpu = append(cpu, (after[i].cpu-before[i].cpu).Seconds()/(minutes*60)*100)
	}
	sessions := 0
	for _, s := range nodes[:min(10, len(nodes))] {
		st, err := status(s.Host)
		if err != nil {
			t.Fatal(err)
		}
		sessions += len(st.Peers)
	}
	t.Logf("%d nodes, idle: packets a minute: median %.1f, most %.1f; of a core: median %.3f %%, most %.3f %%; peers of ten nodes: %d; %s",
		count, median(packets), slices.Max(packets), median(cpu), slices.Max(cpu), sessions, memoryLeft())
	if got := median(packets); got == 0 || got > 12 {
		t.Errorf("an idle node sends and receives %.1f packets a minute", got)
	}
	if got := median(cpu); got == 0 || got > 0.5 {
		t.Errorf("an idle node takes %.3f %% of a core", got)
	}
}

// countingRules count IP packets on the underlay, which is eth0.
const countingRules = `
table inet count {
	chain in { type filter hook prerouting priority raw; policy accept; iifname "eth0" meta l4proto { tcp, udp } counter; }
	chain out { type filter hook postrouting priority raw; policy accept; oifname "eth0" meta l4proto { tcp, udp } counter; }
}
`

type costs struct {
	packets int
	cpu     time.Duration
}

var counted = regexp.MustCompile(`packets (\d+)`)

func snapshotCosts(t *testing.T, nodes []*Site) []costs {
	t.Helper()
	all := make([]costs, len(nodes))
	for i, s := range nodes {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		for _, match := range counted.FindAllStringSubmatch(s.Must(ctx, "nft", "list", "table", "inet", "count"), -1) {
			n, _ := strconv.Atoi(match[1])
			all[i].packets += n
		}
		cancel()
		for _, pid := range pilots(s.Host) {
			all[i].cpu += processorTime(t, pid)
		}
	}
	return all
}

// processorTime is what all threads of a process have used, in nanoseconds by the scheduler's account.
func processorTime(t testing.TB, pid int) time.Duration {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(threads) == 0 {
		t.Fatalf("no threads of %d: %v", pid, err)
	}
	var sum time.Duration
	for _, path := range threads {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		n, err := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += time.Duration(n)
	}
	return sum
}

// memoryLeft is what the machine still has.
func memoryLeft() string {
	text, _ := os.ReadFile("/proc/meminfo")
	line := regexp.MustCompile(`MemAvailable:\s+(.*)`).FindStringSubmatch(string(text))
	if line == nil {
		return "memory unknown"
	}
	return line[1] + " of memory left"
}
