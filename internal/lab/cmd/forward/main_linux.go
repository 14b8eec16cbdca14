// SPDX-License-Identifier: Apache-2.0

// Command forward copies packets between a TUN interface and a UDP socket, and does nothing else: no encryption, no
// policy, no batches. The lab measures its round trip, which no tunnel outside of the kernel can be faster than.
//
//	forward copy0 192.0.2.1:9999 192.0.2.2:9999
package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/pilot-protocol/pilot/overlay/packet"
	"github.com/pilot-protocol/pilot/tun"
)

const mtu = 1420

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "forward: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 3 {
		return errors.New("usage: forward INTERFACE LOCAL:PORT REMOTE:PORT")
	}
	device, err := tun.Open(args[0], mtu)
	if err != nil {
		return err
	}
	descriptors, ok := device.(interface{ Descriptors() []int })
	if !ok {
		return errors.ErrUnsupported
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	for i, do := range []func(int, unix.Sockaddr) error{unix.Bind, unix.Connect} {
		at, err := netip.ParseAddrPort(args[1+i])
		if err == nil {
			err = do(fd, &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())})
		}
		if err != nil {
			return fmt.Errorf("%s: %w", args[1+i], err)
		}
	}
	waiter := tun.NewWaiter(append(descriptors.Descriptors(), fd))
	if waiter == nil {
		return errors.ErrUnsupported
	}
	fmt.Println("copying")
	return forward(device, fd, waiter)
}

// forward reads both until there is nothing more, and waits. What is lost is lost.
func forward(device tun.Device, fd int, waiter *tun.Waiter) error {
	buf, one := make([]byte, tun.BufferSize), make([][]byte, 1)
	for {
		waiter.Wait()
		for {
			n, err := unix.Read(fd, buf)
			if err != nil || n == 0 {
				break
			}
			one[0] = buf[:n]
			_ = device.Write(nil, one)
		}
		for {
			var h tun.Header
			p, err := device.Read(buf, &h, false)
			if err != nil {
				return err
			}
			if p == nil {
				break
			}
			if h.Partial {
				packet.CompleteAt(p, int(h.Start), int(h.Offset))
			}
			_, _ = unix.Write(fd, p)
		}
	}
}
