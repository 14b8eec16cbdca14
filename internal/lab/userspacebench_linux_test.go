// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
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

// BenchmarkUserspace prints what one TCP connection moves between the kernel of one host and programs on another one: through
// an interface there too, through an embedded node's stack, and through wireguard-go and its stack, in alternating rounds
// (PILOT_BENCH_ROUNDS, usually 3). It measures; it judges nothing.
func BenchmarkUserspace(b *testing.B) {
	if testing.Short() {
		b.Skip("the lab starts real programs in network namespaces: not in a short run")
	}
	rounds := benchRounds(2)
	r := &race{Lab: New(b), tb: b, results: map[string]map[string][]float64{}}
	r.left, r.right = r.Host("left"), r.Host("right")
	r.cable(r.left, r.right, "192.0.2.1/24", "192.0.2.2/24")
	planner := found(b, r.left, "planner")
	warehouse := joinBy(b, r.right, "warehouse", planner.Invite)
	r.program("kernel")
	r.carriers = []*carrier{
		{name: "interface", address: warehouse.Address.String()}, r.embedded(), r.wireguardStack(),
	}
	for b.Loop() {
		for range rounds {
			for _, c := range r.carriers {
				r.note("kernel to program, Gb/s", c, r.toSink(c))
				r.note("program to kernel, Gb/s", c, r.fromSource(c))
			}
		}
	}
	b.ReportMetric(0, "ns/op")
	var table strings.Builder
	for _, row := range r.order {
		for _, c := range r.carriers {
			v := r.results[row][c.name]
			fmt.Fprintf(&table, "%-26s %-24s median %6.2f, least %6.2f, most %6.2f\n", row, c.name, median(v), slices.Min(v), slices.Max(v))
		}
		ours, unit := median(r.results[row]["stack"]), strings.NewReplacer(" ", "-", ",", "").Replace(strings.TrimSuffix(row, ", Gb/s"))
		b.ReportMetric(ours/median(r.results[row]["interface"]), unit+"/interface")
		b.ReportMetric(ours/median(r.results[row]["wireguard-go's stack"]), unit+"/wireguard-go's")
	}
	b.Log("\n" + table.String())
}

// program starts this test binary on the right host as the far end of transfers, and returns what it says.
func (r *race) program(words ...string) *Process {
	r.tb.Helper()
	self, err := os.Executable()
	if err != nil {
		r.tb.Fatal(err)
	}
	p := r.right.Start("env", programVariable+"="+strings.Join(words, " "), self)
	r.wait("listening", p)
	return p
}

// embedded is an embedded node on the right host.
func (r *race) embedded() *carrier {
	r.tb.Helper()
	invite := r.left.Must(context.Background(), "sh", "-c", Binary(r.tb)+" invite --json | sed -n 's/.*\"invite\": \"\\(.*\\)\".*/\\1/p'")
	p := r.program("sdk", "indexer", filepath.Join(r.right.Home(), "indexer"), strings.TrimSpace(invite))
	_, rest, _ := strings.Cut(p.Logs(), "address ")
	address, _, _ := strings.Cut(rest, "\n")
	return &carrier{name: "stack", address: address}
}

// wireguardStack is wireguard-go with an interface on the left host, and with its own stack on the right one.
func (r *race) wireguardStack() *carrier {
	r.tb.Helper()
	binary := filepath.Join(r.Dir(), "wireguard-go")
	build := exec.Command("go", "build", "-o", binary, "golang.zx2c4.com/wireguard")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		r.tb.Fatalf("build wireguard-go: %v\n%s", err, out)
	}
	keys := [2]*ecdh.PrivateKey{}
	for i := range keys {
		var err error
		if keys[i], err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			r.tb.Fatal(err)
		}
	}
	r.left.Start(binary, "-f", "wg0")
	socket := r.left.Path("/run/wireguard/wg0.sock")
	Eventually(r.tb, 5*time.Second, func(context.Context) error {
		return configureWireguard(socket, fmt.Sprintf("set=1\nprivate_key=%x\nlisten_port=51820\npublic_key=%x\nendpoint=192.0.2.2:51821\nallowed_ip=::/0\n\n",
			keys[0].Bytes(), keys[1].PublicKey().Bytes()))
	})
	r.left.must("ip", "addr", "add", "fd77::1/64", "dev", "wg0", "nodad")
	r.left.must("ip", "link", "set", "wg0", "mtu", "1420", "up")
	text := base64.StdEncoding.EncodeToString
	r.program("wireguard", "fd77::2", text(keys[1].Bytes()), text(keys[0].PublicKey().Bytes()), "192.0.2.1:51820")
	return &carrier{name: "wireguard-go's stack", address: "fd77::2"}
}

// dial connects from the left host by its kernel.
func (r *race) dial(c *carrier, port int) *net.TCPConn {
	r.tb.Helper()
	var conn net.Conn
	Eventually(r.tb, 20*time.Second, func(ctx context.Context) error {
		return r.left.In(func() (err error) {
			d := net.Dialer{Timeout: 5 * time.Second}
			conn, err = d.DialContext(ctx, "tcp", net.JoinHostPort(c.address, strconv.Itoa(port)))
			return err
		})
	})
	return conn.(*net.TCPConn)
}

// toSink sends for some seconds, and returns Gb/s of what was counted there.
func (r *race) toSink(c *carrier) float64 {
	r.tb.Helper()
	conn := r.dial(c, sinkPort)
	defer conn.Close()
	chunk := make([]byte, 128<<10)
	began, length := time.Now(), time.Duration(benchSeconds(tcpSeconds))*time.Second
	for time.Since(began) < length {
		_ = conn.SetWriteDeadline(time.Now().Add(20 * time.Second))
		if _, err := conn.Write(chunk); err != nil {
			r.tb.Fatalf("to %s: %v", c.name, err)
		}
	}
	if err := conn.CloseWrite(); err != nil {
		r.tb.Fatal(err)
	}
	var n int64
	if _, err := fmt.Fscan(conn, &n); err != nil {
		r.tb.Fatalf("to %s: %v", c.name, err)
	}
	return float64(n) * 8 / 1e9 / time.Since(began).Seconds()
}

// fromSource reads for some seconds.
func (r *race) fromSource(c *carrier) float64 {
	r.tb.Helper()
	conn := r.dial(c, sourcePort)
	defer conn.Close()
	buf := make([]byte, 256<<10)
	began, total, length := time.Now(), 0, time.Duration(benchSeconds(tcpSeconds))*time.Second
	for time.Since(began) < length {
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		n, err := conn.Read(buf)
		if err != nil && err != io.EOF {
			r.tb.Fatalf("from %s: %v", c.name, err)
		}
		total += n
	}
	return float64(total) * 8 / 1e9 / time.Since(began).Seconds()
}
