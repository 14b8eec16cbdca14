// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package platform

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// InterfaceAddresses returns the addresses of this host at which another one could reach it: of interfaces that are up,
// without those whose names begin with exclude (empty: none); neither loopback, link-local nor multicast.
func InterfaceAddresses(exclude string) ([]netip.Addr, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var out []netip.Addr
	for _, i := range interfaces {
		if excluded(i.Name, exclude) || i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue // it went away in between
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && candidate(p.Addr()) {
				out = append(out, p.Addr().Unmap())
			}
		}
	}
	return out, nil
}

// OwnAddress tells whether packets to an address stay on this host.
func OwnAddress(a netip.Addr) bool {
	own, err := InterfaceAddresses("")
	return err != nil || a.IsLoopback() || slices.Contains(own, a.Unmap().WithZone(""))
}

// networkPoll is how often the addresses are compared where the system isn't asked to tell of changes.
const networkPoll = 5 * time.Second

// WatchNetwork sends when this host's addresses have changed, until ctx ends; then it closes the channel.
func WatchNetwork(ctx context.Context) (<-chan struct{}, error) {
	last, err := InterfaceAddresses("")
	if err != nil {
		return nil, err
	}
	changes := make(chan struct{}, 1)
	go func() {
		defer close(changes)
		tick := time.NewTicker(networkPoll)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			now, err := InterfaceAddresses("")
			if err != nil || slices.Equal(now, last) {
				continue
			}
			last = now
			select {
			case changes <- struct{}{}:
			default:
			}
		}
	}()
	return changes, nil
}

// run executes a command of the system's and adds what it printed to its error.
func (c command) run() error {
	out, err := exec.Command(c[0], c[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(c, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
