// SPDX-License-Identifier: Apache-2.0

// Command flood sends numbered UDP datagrams, and counts what arrives, or measures how long answers take: the lab's
// measurements start it at both ends.
//
//	flood -listen [::]:7008 [-join]
//	flood -to [fd00::1]:7008 -size 64 -rate 100000 -seconds 1 [-segment]
//	flood -to [fd00::1]:7008 -ask 4000
//
// The latter two print one line of JSON.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/pilot-protocol/pilot/internal/lab/flood"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "flood: %v\n", err)
		os.Exit(1)
	}
}

func run() error {
	listen := flag.String("listen", "", "address and port to count at")
	join := flag.Bool("join", false, "with -listen: take datagrams in a row as one (UDP_GRO)")
	to := flag.String("to", "", "address and port to send to")
	size := flag.Int("size", 64, "bytes of a datagram")
	rate := flag.Float64("rate", 0, "datagrams a second; 0: as many as can be sent")
	seconds := flag.Float64("seconds", 1, "how long")
	segment := flag.Bool("segment", false, "with -to: have the kernel cut large sends (UDP_SEGMENT)")
	ask := flag.Int("ask", 0, "with -to: ask so many times, one after the other, instead of flooding")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if *listen != "" {
		at, err := netip.ParseAddrPort(*listen)
		if err != nil {
			return err
		}
		v, err := flood.Listen(at, *join)
		if err != nil {
			return err
		}
		fmt.Println("counting at", at)
		return v.Serve(ctx)
	}
	at, err := netip.ParseAddrPort(*to)
	if err != nil {
		return err
	}
	if *ask > 0 {
		t, err := flood.Ask(ctx, at, *ask)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(t)
	}
	r, err := flood.Send(ctx, flood.Options{
		To: at, Size: *size, Rate: *rate, For: time.Duration(*seconds * float64(time.Second)), Segment: *segment,
	})
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}
