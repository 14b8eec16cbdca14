// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// resolverScript is the network's ordinary DNS server: every name has the address 203.0.113.99.
const resolverScript = `
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", 53))
print("answering")
while True:
    q, who = s.recvfrom(4096)
    end = 12
    while q[end]:
        end += q[end] + 1
    end += 5
    a = q[end-4:end-2] == b"\x00\x01"
    answer = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04" + bytes([203, 0, 113, 99]) if a else b""
    s.sendto(q[:2] + b"\x81\x80\x00\x01" + (b"\x00\x01" if a else b"\x00\x00") + b"\x00\x00\x00\x00" + q[12:end] + answer, who)
`

// streamScript is a web server whose answer has no end, at half a megabyte a second: nothing of it waits in buffers.
const streamScript = `
import http.server, time
class Stream(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(b"x" * 25000)
            time.sleep(0.05)
class Server(http.server.ThreadingHTTPServer):
    address_family = __import__("socket").AF_INET6
server = Server(("::", 8080), Stream)
print("streaming")
server.serve_forever()
`

// The whole story, as a person would live it, with unmodified programs.
func TestStory(t *testing.T) {
	ctx := deadline(t, 3*time.Minute)
	m := openTrio(t, "ping", "iperf3", "dig", "ssh", "sshd", "ssh-keygen")
	resolver := m.Host("resolver")
	resolver.Connect(m.wan, "192.0.2.53/24")
	m.wait("answering", resolver.Start("python3", "-c", resolverScript))
	before := map[*Host]Snapshot{}
	for _, h := range []*Host{m.a, m.b, m.c} {
		h.Resolvers("192.0.2.53")
		before[h] = h.Snapshot()
	}

	planner := found(t, m.a, "planner")
	warehouse := joinBy(t, m.b, "warehouse", planner.Invite)
	if warehouse.Inviter != "planner" || warehouse.Network != "pilot" {
		t.Errorf("the answer to the join: %+v", warehouse)
	}
	m.a.WriteFile("index.html", "the plan", 0o644)
	web := serve(m.a)
	get(t, m.b, "http://planner/", "the plan")
	get(t, m.b, "http://planner.pilot.internal/", "the plan")
	get(t, m.b, fmt.Sprintf("http://[%v]/", planner.Address), "the plan")
	m.b.Must(ctx, "ping", "-c", "3", "-i", "0.2", "-W", "5", "planner")
	checkIperf(ctx, t, m.a, m.b)
	checkSSH(ctx, t, m.a, m.b)
	checkNames(ctx, t, m, planner, warehouse)
	checkReports(ctx, t, m, planner, warehouse)

	join(t, m.a, m.c, "auditor")
	get(t, m.c, "http://planner/", "the plan")
	checkTrust(ctx, t, m)
	web.Kill()

	for _, h := range []*Host{m.c, m.b, m.a} {
		pilot[localapi.DownResult](t, h, "down")
	}
	for h, snapshot := range before {
		endServers(h)
		untouched(t, h, snapshot)
	}
	// The network is still theirs.
	if again := pilot[localapi.UpResult](t, m.a, "up"); again.Address != planner.Address || again.Name != "planner" || again.Created {
		t.Errorf("up after down: %+v", again)
	}
}

func checkIperf(ctx context.Context, t *testing.T, server, client *Host) {
	t.Helper()
	p := server.Start("iperf3", "-s", "--forceflush")
	server.lab.wait("Server listening", p)
	defer p.Kill()
	type report struct {
		End struct {
			Sum struct {
				Bytes       float64 `json:"bytes"`
				LostPercent float64 `json:"lost_percent"`
			} `json:"sum"`
			SumReceived struct {
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	var tcp, udp report
	out := client.Must(ctx, "iperf3", "-c", "planner", "-t", "2", "--json")
	if err := json.Unmarshal([]byte(out), &tcp); err != nil || tcp.End.SumReceived.BitsPerSecond == 0 {
		t.Errorf("iperf3 over TCP: %v in %s", err, out)
	}
	out = client.Must(ctx, "iperf3", "-c", "planner", "-u", "-b", "20M", "-l", "1200", "-t", "2", "--json")
	if err := json.Unmarshal([]byte(out), &udp); err != nil || udp.End.Sum.Bytes == 0 || udp.End.Sum.LostPercent > 5 {
		t.Errorf("iperf3 over UDP: %v in %s", err, out)
	}
	t.Logf("iperf3: TCP %.0f Mbit/s; UDP at 20 Mbit/s, %.2f %% lost", tcp.End.SumReceived.BitsPerSecond/1e6, udp.End.Sum.LostPercent)
}

func checkSSH(ctx context.Context, t *testing.T, server, client *Host) {
	t.Helper()
	key := filepath.Join(client.Home(), "ssh-key")
	client.Must(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
	public, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	// An account that is locked altogether may not even use a key.
	server.Must(ctx, "sed", "-i", "s/^root:[^:]*/root:*/", "/etc/shadow")
	hostKey := filepath.Join(server.Home(), "host-key")
	server.Must(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", hostKey)
	authorized := server.WriteFile("authorized", string(public), 0o600)
	config := server.WriteFile("sshd.conf", fmt.Sprintf("HostKey %s\nAuthorizedKeysFile %s\nStrictModes no\nUsePAM no\n"+
		"PermitRootLogin yes\nPidFile none\n", hostKey, authorized), 0o600)
	path, _ := lookPath("sshd")
	p := server.Start(path, "-D", "-e", "-f", config)
	server.lab.wait("listening on ::", p)
	defer p.Kill()
	r := client.RunInput(ctx, "first line\nsecond line\n", "ssh", "-i", key, "-o", "BatchMode=yes",
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "root@planner",
		"hostname; while read -r line; do echo \"got $line\"; done")
	if want := "a\ngot first line\ngot second line\n"; r.Stdout != want || !r.OK() {
		t.Errorf("ssh: %q expected, got %v", want, r)
	}
}

func checkNames(ctx context.Context, t *testing.T, m *trio, planner, warehouse localapi.UpResult) {
	t.Helper()
	for _, q := range []struct {
		args []string
		want string
	}{
		{[]string{"planner.pilot.internal", "AAAA"}, planner.Address.String()},
		{[]string{"-x", planner.Address.String()}, "planner.pilot.internal."},
		{[]string{"+tcp", "planner.pilot.internal", "AAAA"}, planner.Address.String()},
		{[]string{"planner.pilot.internal", "A"}, ""},
		{[]string{"www.example.com", "A"}, "203.0.113.99"},
	} {
		got := strings.TrimSpace(m.b.Must(ctx, append([]string{"dig", "+short", "+time=3"}, q.args...)...))
		if got != q.want {
			t.Errorf("dig %v: %q instead of %q", q.args, got, q.want)
		}
	}
	if out := m.b.Must(ctx, "dig", "+time=3", "nobody.pilot.internal", "AAAA"); !strings.Contains(out, "NXDOMAIN") || !strings.Contains(out, "SOA") {
		t.Errorf("an unknown name is not answered by NXDOMAIN with a SOA:\n%s", out)
	}
	page := m.b.Must(ctx, "curl", "-sS", "--max-time", "10", "http://pilot.internal/")
	for _, want := range []string{"warehouse", warehouse.Address.String(), "planner"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page at pilot.internal lacks %q:\n%s", want, page)
		}
	}
}

func checkReports(ctx context.Context, t *testing.T, m *trio, planner, warehouse localapi.UpResult) {
	t.Helper()
	s := pilot[localapi.Status](t, m.b, "status")
	if s.State != localapi.StateUp || s.Self == nil || s.Self.Address != warehouse.Address || len(s.Peers) != 1 ||
		s.Peers[0].State != localapi.PeerConnected || s.Peers[0].RxBytes == 0 || !strings.Contains(s.Peers[0].Path, "192.0.2.10:") {
		t.Errorf("status of warehouse: %+v", s)
	}
	for _, q := range []string{"planner", planner.Address.String(), planner.Key.String()} {
		if who := pilot[localapi.Agent](t, m.b, "whois", q); who.Name != "planner" || who.Address != planner.Address || who.Trust != localapi.TrustMutual {
			t.Errorf("whois %s: %+v", q, who)
		}
	}
	agents := pilot[localapi.AgentList](t, m.b, "agents")
	names := map[string]string{}
	for _, a := range agents.Agents {
		names[a.Name] = a.Trust
	}
	if names["planner"] != localapi.TrustMutual {
		t.Errorf("agents that warehouse sees: %+v", agents)
	}
	// Each of these is for people too.
	for _, args := range [][]string{{"status"}, {"agents"}, {"whois", "planner"}, {"trust", "ls"}, {"ping", "planner", "--count", "1"}} {
		if out := m.b.Must(ctx, append([]string{"pilot"}, args...)...); !strings.Contains(out, "planner") {
			t.Errorf("pilot %v says nothing of planner:\n%s", args, out)
		}
	}
}

// checkTrust lets two strangers consent, then one of them change its mind in the middle of a download.
func checkTrust(ctx context.Context, t *testing.T, m *trio) {
	t.Helper()
	m.b.WriteFile("index.html", "the stock", 0o644)
	stream := m.b.Start("python3", "-c", streamScript)
	m.wait("streaming", stream)
	serve(m.b)
	if out := m.c.Must(ctx, "dig", "+time=3", "warehouse.pilot.internal", "AAAA"); !strings.Contains(out, "NXDOMAIN") {
		t.Errorf("a name that may not be reached is shown:\n%s", out)
	}
	if r := m.c.Run(ctx, "curl", "-sS", "--max-time", "5", "http://warehouse/"); r.OK() {
		t.Errorf("strangers reach each other: %v", r)
	}

	asked := pilot[localapi.TrustEntry](t, m.c, "trust", "warehouse", "--reason", "quarterly audit")
	if asked.State != localapi.TrustRequested {
		t.Errorf("the answer to trust: %+v", asked)
	}
	Eventually(t, 10*time.Second, func(context.Context) error {
		for _, e := range pilot[localapi.TrustList](t, m.b, "trust", "pending").Entries {
			if e.Name == "auditor" && e.Theirs != nil && e.Theirs.Reason == "quarterly audit" {
				return nil
			}
		}
		return fmt.Errorf("the request does not show up")
	})
	if got := pilot[localapi.TrustEntry](t, m.b, "trust", "approve", "auditor"); got.State != localapi.TrustMutual {
		t.Errorf("the answer to approve: %+v", got)
	}
	m.c.Probe(10*time.Second, "curl", "-sS", "--fail", "--max-time", "3", "-o", "/dev/null", "http://warehouse/")
	get(t, m.c, "http://warehouse/", "the stock")

	target := filepath.Join(m.c.Home(), "download")
	download := m.c.Start("curl", "-sS", "--no-buffer", "-o", target, "http://warehouse:8080/")
	size := func() int64 {
		info, err := os.Stat(target)
		if err != nil {
			return 0
		}
		return info.Size()
	}
	Eventually(t, 10*time.Second, func(context.Context) error {
		if size() < 200_000 {
			return fmt.Errorf("the download does not begin")
		}
		return nil
	})
	pilot[localapi.TrustEntry](t, m.b, "trust", "revoke", "auditor")
	time.Sleep(2 * time.Second)
	stopped := size()
	time.Sleep(time.Second)
	if now := size(); now != stopped {
		t.Errorf("2 s after the revocation the download went on from %d to %d bytes", stopped, now)
	}
	download.Kill()
	if r := m.c.Run(ctx, "curl", "-sS", "--max-time", "5", "http://warehouse/"); r.OK() {
		t.Errorf("a revoked peer opens a new connection: %v", r)
	}
}

// endServers ends what the test itself started on a host.
func endServers(h *Host) {
	h.mu.Lock()
	processes := h.processes
	h.mu.Unlock()
	for _, p := range processes {
		p.Kill()
	}
}
