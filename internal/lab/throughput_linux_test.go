// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The comparison with wireguard-go: two hosts on one cable, the same programs through each carrier in turn. Set
// PILOT_BENCH_ROUNDS for other than 3 rounds (1 of the slow searches that only add detail), and PILOT_BENCH_ONLY to some of
// "tcp tcp4 echo udp64 udp1200 flood64 flood1200 segments1200 load plain" for less.
const tcpSeconds = 3

// quick says that benchmarks are to show only that they still run (PILOT_BENCH_QUICK=1): in one round, for a second where they
// take several, and without the search for a rate. Their figures mean nothing then.
func quick() bool { return os.Getenv("PILOT_BENCH_QUICK") == "1" }

// benchSeconds is how long a measurement takes that usually takes so long.
func benchSeconds(usual int) int {
	if quick() {
		return 1
	}
	return usual
}

// benchRounds is how often a thing is measured that usually is so often.
func benchRounds(usual int) int {
	if rounds, err := strconv.Atoi(os.Getenv("PILOT_BENCH_ROUNDS")); err == nil {
		return rounds
	}
	if quick() {
		return 1
	}
	return usual
}

// carrier is a way for packets to travel between the two hosts.
type carrier struct {
	name    string
	address string    // of the right host
	pids    []int     // of the daemons, left and right
	idle    []float64 // their resident memory before the measurements, in MB
	bound   bool      // it is no tunnel, and only its round trip is measured
}

// race is the two hosts, and all ways between them.
type race struct {
	*Lab
	tb          testing.TB
	left, right *Host
	carriers    []*carrier
	flood       string                          // the program
	results     map[string]map[string][]float64 // by measurement and carrier
	order       []string
}

// BenchmarkThroughput prints medians, extremes and the ratio to wireguard-go. It measures; it judges nothing.
func BenchmarkThroughput(b *testing.B) {
	if testing.Short() {
		b.Skip("the lab starts real programs in network namespaces: not in a short run")
	}
	r := newRace(b)
	rounds, searches := benchRounds(3), benchRounds(1)
	for b.Loop() {
		for round := range rounds {
			for _, c := range r.carriers {
				r.measure("echo", func() { r.echo(c) })
				if c.bound {
					continue
				}
				r.measure("tcp", func() { r.tcp(c, "TCP, 1 stream", 1) })
				r.measure("tcp4", func() { r.tcp(c, "TCP, 4 streams", 4) })
				r.measure("flood64", func() { r.floods(c, 64, false) })
				r.measure("flood1200", func() { r.floods(c, 1200, false) })
				r.measure("load", func() { r.load(c) })
				if round < searches {
					r.measure("udp64", func() { r.udp(c, 64) })
					r.measure("udp1200", func() { r.udp(c, 1200) })
					r.measure("segments1200", func() { r.floods(c, 1200, true) })
				}
			}
		}
		r.offloads(false)
		for range rounds {
			for _, c := range r.carriers {
				if c.bound {
					continue
				}
				r.measure("plain", func() { r.tcp(c, "TCP, no offloads on the cable", 1) })
			}
		}
		r.offloads(true)
	}
	for _, c := range r.carriers {
		for i, pid := range c.pids {
			if c.bound {
				break
			}
			r.note([]string{"memory idle, left", "memory idle, right"}[i]+", MB", c, c.idle[i])
			r.note([]string{"memory after, left", "memory after, right"}[i]+", MB", c, residentMB(b, pid))
		}
	}
	b.Log("\n" + r.table())
	b.ReportMetric(0, "ns/op")
	for _, row := range r.order {
		if ratio, ok := r.ratio(row, "pilot"); ok {
			b.ReportMetric(ratio, strings.NewReplacer(" ", "-", ",", "").Replace(row)+"/wireguard-go")
		}
	}
}

func newRace(b *testing.B) *race {
	l := New(b)
	Programs(b, "iperf3", "nsenter")
	r := &race{Lab: l, tb: b, left: l.Host("left"), right: l.Host("right"), results: map[string]map[string][]float64{}}
	l.cable(r.left, r.right, "192.0.2.1/24", "192.0.2.2/24")
	r.carriers = append(r.carriers, &carrier{name: "cable", address: "192.0.2.2"})
	r.carriers = append(r.carriers, r.wireguard(b))
	planner := found(b, r.left, "planner")
	warehouse := joinBy(b, r.right, "warehouse", planner.Invite)
	// The daemon, not the command that started it.
	r.carriers = append(r.carriers, &carrier{name: "pilot", address: warehouse.Address.String(), pids: []int{pilots(r.left)[0], pilots(r.right)[0]}})
	l.wait("Server listening", r.right.Start("iperf3", "-s", "--forceflush"))
	r.startFlood()
	for _, c := range r.carriers {
		if c.bound {
			continue
		}
		r.iperf(c, "-t", "1") // sessions are made
		for _, pid := range c.pids {
			c.idle = append(c.idle, residentMB(b, pid))
		}
	}
	return r
}

// cable joins two hosts by a pair of virtual Ethernet interfaces, without a switch.
func (l *Lab) cable(a, b *Host, addressA, addressB string) {
	l.tb.Helper()
	out, err := exec.Command("nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", a.PID()), "ip", "link", "add", "eth0", "type", "veth",
		"peer", "name", "eth0", "netns", strconv.Itoa(b.PID())).CombinedOutput()
	if err != nil {
		l.tb.Fatalf("lab: cable: %v: %s", err, out)
	}
	for h, address := range map[*Host]string{a: addressA, b: addressB} {
		h.links++
		h.must("sysctl", "-q", "-w", "net.ipv6.conf.eth0.accept_dad=0")
		h.must("ip", "link", "set", "eth0", "up")
		h.must("ip", "addr", "add", address, "dev", "eth0")
	}
}

// wireguard starts wireguard-go, in the version of the module that the tunnel interface is from, on both hosts.
func (r *race) wireguard(tb testing.TB) *carrier {
	binary := filepath.Join(r.Dir(), "wireguard-go")
	build := exec.Command("go", "build", "-o", binary, "golang.zx2c4.com/wireguard")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		tb.Fatalf("build wireguard-go: %v\n%s", err, out)
	}
	c := &carrier{name: "wireguard-go", address: "fd77::2"}
	keys := [2]*ecdh.PrivateKey{}
	for i := range keys {
		var err error
		if keys[i], err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			tb.Fatal(err)
		}
	}
	for i, h := range []*Host{r.left, r.right} {
		p := h.Start(binary, "-f", "wg0")
		socket := h.Path("/run/wireguard/wg0.sock")
		Eventually(tb, 5*time.Second, func(context.Context) error {
			return configureWireguard(socket, fmt.Sprintf("set=1\nprivate_key=%x\nlisten_port=51820\npublic_key=%x\nendpoint=192.0.2.%d:51820\nallowed_ip=::/0\n\n",
				keys[i].Bytes(), keys[1-i].PublicKey().Bytes(), 2-i))
		})
		h.must("ip", "addr", "add", fmt.Sprintf("fd77::%d/64", i+1), "dev", "wg0", "nodad")
		h.must("ip", "link", "set", "wg0", "mtu", "1420", "up")
		c.pids = append(c.pids, p.cmd.Process.Pid)
	}
	return c
}

func configureWireguard(socket, request string) error {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, request); err != nil {
		return err
	}
	answer := make([]byte, 256)
	n, err := conn.Read(answer)
	if err != nil || !bytes.Contains(answer[:n], []byte("errno=0")) {
		return fmt.Errorf("wireguard-go says %q, %w", answer[:n], err)
	}
	return nil
}

// report is what iperf3 says at the end.
type report struct {
	End struct {
		Sum         sum `json:"sum"`
		SumReceived sum `json:"sum_received"`
		SumSent     sum `json:"sum_sent"`
	} `json:"end"`
	Error string `json:"error"`

	raw string // all of it
}

type sum struct {
	Seconds     float64 `json:"seconds"`
	Bytes       float64 `json:"bytes"`
	Rate        float64 `json:"bits_per_second"`
	Packets     float64 `json:"packets"`
	LostPercent float64 `json:"lost_percent"`
}

func (r *race) iperf(c *carrier, args ...string) report {
	r.tb.Helper()
	var rep report
	// Its control connection shares the way with the flood, and may give up.
	Eventually(r.tb, time.Minute, func(ctx context.Context) error {
		rep = report{}
		out := r.left.Run(ctx, append([]string{"iperf3", "-J", "--connect-timeout", "3000", "-c", c.address}, args...)...)
		err := json.Unmarshal([]byte(out.Stdout), &rep)
		rep.raw = out.Stdout
		if err != nil || rep.Error != "" {
			return fmt.Errorf("iperf3 %v through %s: %w %s", args, c.name, err, rep.Error)
		}
		return nil
	})
	return rep
}

func (r *race) measure(name string, f func()) {
	if only := strings.Fields(os.Getenv("PILOT_BENCH_ONLY")); len(only) == 0 || slices.Contains(only, name) {
		f()
	}
}

func (r *race) note(row string, c *carrier, v float64) {
	if r.results[row] == nil {
		r.results[row] = map[string][]float64{}
		r.order = append(r.order, row)
	}
	r.results[row][c.name] = append(r.results[row][c.name], v)
}

func (r *race) tcp(c *carrier, row string, streams int) {
	before := r.cpu(c)
	rep := r.iperf(c, "-t", strconv.Itoa(benchSeconds(tcpSeconds)), "-P", strconv.Itoa(streams))
	if rep.End.SumReceived.Bytes == 0 {
		r.tb.Logf("%s through %s: nothing arrived; iperf3 says: %s", row, c.name, rep.raw)
	}
	r.note(row+", Gb/s", c, rep.End.SumReceived.Rate/1e9)
	if len(c.pids) > 0 {
		r.note(row+", daemons' CPU s per GB", c, (r.cpu(c)-before)/(rep.End.SumReceived.Bytes/1e9))
	}
}

// offloads switches the cable's segmentation and joining of datagrams.
func (r *race) offloads(on bool) {
	for _, h := range []*Host{r.left, r.right} {
		if err := h.In(func() error { return setOffloads("eth0", on) }); err != nil {
			r.tb.Fatal(err)
		}
	}
}

// cpu is what the daemons have used, in seconds.
func (r *race) cpu(c *carrier) (seconds float64) {
	for _, pid := range c.pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			r.tb.Fatal(err)
		}
		// The name of the program, in brackets, may hold spaces.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		for _, f := range fields[11:13] {
			ticks, err := strconv.ParseFloat(f, 64)
			if err != nil {
				r.tb.Fatal(err)
			}
			seconds += ticks / 100
		}
	}
	return seconds
}

func residentMB(tb testing.TB, pid int) float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			if err != nil {
				tb.Fatal(err)
			}
			return kb / 1024
		}
	}
	tb.Fatalf("no VmRSS of process %d", pid)
	return 0
}

func (r *race) ratio(row, name string) (float64, bool) {
	ours, theirs := r.results[row][name], r.results[row]["wireguard-go"]
	if len(ours) == 0 || len(theirs) == 0 || median(theirs) == 0 {
		return 0, false
	}
	return median(ours) / median(theirs), true
}

func (r *race) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-56s %-14s %10s %10s %10s %8s\n", "", "", "median", "least", "most", "ratio")
	for _, row := range r.order {
		for _, c := range r.carriers {
			v := r.results[row][c.name]
			if len(v) == 0 {
				continue
			}
			ratio, _ := r.ratio(row, c.name)
			fmt.Fprintf(&b, "%-56s %-14s %10.2f %10.2f %10.2f %8.2f\n", row, c.name, median(v), slices.Min(v), slices.Max(v), ratio)
		}
	}
	return b.String()
}
