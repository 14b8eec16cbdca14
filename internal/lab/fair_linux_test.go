// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
)

const (
	fairSize  = 24 << 20
	fairLimit = 60 * time.Second
)

// TestFloodLeavesRoom floods a host in each of three ways, and wants a download by somebody else to get through all the
// same: a peer sends what it may send, as much as it can; a program of the host's own does, to another peer; and a
// stranger sends what is no record at all to the node's UDP port.
func TestFloodLeavesRoom(t *testing.T) {
	m := openTrio(t, "iperf3")
	planner := found(t, m.a, "planner")
	flooder := join(t, m.a, m.b, "flooder")
	join(t, m.a, m.c, "auditor")
	stranger := m.Host("stranger")
	stranger.Connect(m.wan, "192.0.2.66/24")
	m.a.WriteFile("plan", strings.Repeat("0123456789abcdef", fairSize/16), 0o644)
	serve(m.a)
	for _, h := range []*Host{m.a, m.b} {
		m.wait("Server listening", h.Start("iperf3", "-s", "--forceflush"))
	}
	port := pilot[localapi.Status](t, m.a, "status").Self.Port
	alone := download(t, m.c)
	t.Logf("without a flood: %.1f MB/s", alone)
	for _, f := range []struct {
		name string
		from *Host
		args []string
	}{
		{"a peer's flood", m.b, []string{"iperf3", "-u", "-b", "0", "-l", "64", "-t", "120", "-c", planner.Address.String()}},
		{"a flood to another peer", m.a, []string{"iperf3", "-u", "-b", "0", "-l", "64", "-t", "120", "-c", flooder.Address.String()}},
		{"a stranger's flood", stranger, []string{"python3", "-c", strangerScript, "192.0.2.10", strconv.Itoa(int(port))}},
	} {
		p := f.from.Start(f.args...)
		before := received(t, f.from)
		Eventually(t, 20*time.Second, func(context.Context) error {
			if n := received(t, f.from) - before; n < 20_000 {
				return fmt.Errorf("%d packets so far", n)
			}
			return nil
		})
		t.Logf("with %s: %.1f MB/s", f.name, download(t, m.c))
		if !p.Running() {
			t.Fatalf("%s had ended: %s", f.name, p.Logs())
		}
		p.Kill()
	}
}

// strangerScript sends datagrams that look like records of a session that there is not, for two minutes at most.
const strangerScript = `
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect((sys.argv[1], int(sys.argv[2])))
record = bytes([0x24, 0, 0, 0]) + b"\x55" * 1200
end = time.monotonic() + 120
while time.monotonic() < end:
    for _ in range(256):
        try:
            s.send(record)
        except OSError:
            pass
`

// received is how many packets the host's cable has carried so far, away from it.
func received(t *testing.T, h *Host) int {
	t.Helper()
	out := h.must("cat", "/sys/class/net/eth0/statistics/tx_packets")
	n, err := strconv.Atoi(strings.TrimSpace(out))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// download fetches planner's plan and returns its speed in MB/s.
func download(t *testing.T, h *Host) float64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), fairLimit)
	defer cancel()
	out := h.Must(ctx, "curl", "-sS", "--fail", "-o", "/dev/null", "-w", "%{size_download} %{speed_download}", "http://planner/plan")
	size, speed, _ := strings.Cut(out, " ")
	rate, err := strconv.ParseFloat(speed, 64)
	if err != nil || size != strconv.Itoa(fairSize) {
		t.Fatalf("curl: %q, %v", out, err)
	}
	return rate / 1e6
}
