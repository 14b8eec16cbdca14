// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkLossyLink measures one TCP stream over a link that loses one frame in a hundred, each way, and has a round
// trip of 30 ms: plain, through wireguard-go and through pilot, in turn, by Reno, which shows whether a tunnel makes
// several losses of one, because it slows down at each; and by BBR, where the kernel has it, which shows what the
// machine can carry. Such a stream's speed is a matter of luck: PILOT_BENCH_ROUNDS asks for more rounds than 3. It
// measures; it judges nothing.
func BenchmarkLossyLink(b *testing.B) {
	if testing.Short() {
		b.Skip("the lab starts real programs in network namespaces: not in a short run")
	}
	l := New(b)
	wan := l.Bridge("wan")
	left, right := l.Host("left"), l.Host("right")
	link := left.Connect(wan, "192.0.2.1/24")
	right.Connect(wan, "192.0.2.2/24")
	emulator := link.Impair(1, Impairment{}, Impairment{})
	wireguard := (&race{Lab: l, tb: b, left: left, right: right}).wireguard(b)
	planner := found(b, left, "planner")
	ways := []struct {
		name string
		to   netip.Addr
	}{
		{"plain", netip.MustParseAddr("192.0.2.2")},
		{wireguard.name, netip.MustParseAddr(wireguard.address)},
		{"pilot", joinBy(b, right, "warehouse", planner.Invite).Address},
	}
	i := Impairment{Loss: 0.01, Delay: 15 * time.Millisecond}
	emulator.Set(i, i)
	rounds := benchRounds(3)
	available := strings.Fields(left.must("sysctl", "-n", "net.ipv4.tcp_available_congestion_control"))
	controls := slices.DeleteFunc([]string{"reno", "bbr"}, func(name string) bool { return !slices.Contains(available, name) })
	rates := map[string][]float64{}
	for b.Loop() {
		for range rounds {
			for _, control := range controls {
				for _, way := range ways {
					rate, err := stream(left, right, netip.AddrPortFrom(way.to, 7001), control, time.Duration(benchSeconds(4))*time.Second)
					if err != nil {
						b.Fatalf("%s, %s: %v", control, way.name, err)
					}
					rates[control+"-"+way.name] = append(rates[control+"-"+way.name], rate/1e6)
				}
			}
		}
	}
	b.ReportMetric(0, "ns/op")
	for _, control := range controls {
		for _, way := range ways {
			r := rates[control+"-"+way.name]
			b.Logf("%-4s %-12s median %.2f, least %.2f, most %.2f Mb/s of %d", control, way.name, median(r), slices.Min(r), slices.Max(r), len(r))
			b.ReportMetric(median(r), "Mb/s-"+control+"-"+way.name)
		}
		pilot := median(rates[control+"-pilot"])
		b.ReportMetric(pilot/median(rates[control+"-plain"]), control+"-pilot/plain")
		b.ReportMetric(pilot/median(rates[control+"-"+wireguard.name]), control+"-pilot/"+wireguard.name)
	}
	out, in := emulator.Counters()
	b.Logf("frames of %s: %v; of %s: %v", left.Name(), out, right.Name(), in)
}

// stream sends over one TCP connection for a while and returns what arrived, in bits per second.
func stream(from, to *Host, at netip.AddrPort, control string, length time.Duration) (float64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), length+20*time.Second)
	defer cancel()
	listener, err := listenOn(to, at)
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	end, _ := ctx.Deadline()
	if err := listener.SetDeadline(end); err != nil {
		return 0, err
	}
	opened, err := dialFrom(ctx, from, at)
	if err != nil {
		return 0, err
	}
	accepted, err := listener.AcceptTCP()
	if err != nil {
		_ = opened.Close()
		return 0, err
	}
	defer accepted.Close()
	raw, err := opened.SyscallConn()
	if err == nil {
		var inner error
		err = raw.Control(func(fd uintptr) {
			inner = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, control)
		})
		err = errors.Join(err, inner)
	}
	if err != nil {
		_ = opened.Close()
		return 0, err
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		block := make([]byte, 256<<10)
		for err := error(nil); err == nil; { // until the connection is closed
			_, err = opened.Write(block)
		}
	}()
	defer func() { _ = opened.Close(); <-sent }()
	// What it has left to send is of no interest, and would be in the way of the next.
	if err := errors.Join(opened.SetLinger(0), accepted.SetDeadline(time.Now().Add(length))); err != nil {
		return 0, err
	}
	total, block := 0, make([]byte, 256<<10)
	for begin := time.Now(); ; {
		n, err := accepted.Read(block)
		total += n
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return float64(total) * 8 / time.Since(begin).Seconds(), nil
		case err != nil:
			return 0, err
		}
	}
}
