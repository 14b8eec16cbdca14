// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Traffic whose content is checked. The sockets are the hosts', what reads and writes them is this process: bytes
// are made, hashed and compared as fast as the machine can.

// randomBytes is a fast endless stream that nobody can guess.
func randomBytes() *rand.ChaCha8 {
	var seed [32]byte
	_, _ = crand.Read(seed[:]) // never fails
	return rand.NewChaCha8(seed)
}

// exchange sends this many random bytes in both directions at once over one TCP connection between two hosts, and
// compares the hashes of what was sent and what arrived.
func exchange(ctx context.Context, from, to *Host, at netip.AddrPort, size int64) error {
	listener, err := listenOn(to, at)
	if err != nil {
		return err
	}
	defer listener.Close()
	end, _ := ctx.Deadline()
	if err := listener.SetDeadline(end); err != nil {
		return err
	}
	opened, err := dialFrom(ctx, from, at)
	if err != nil {
		return err
	}
	defer opened.Close()
	accepted, err := listener.AcceptTCP()
	if err != nil {
		return err
	}
	defer accepted.Close()
	if err := accepted.SetDeadline(end); err != nil {
		return err
	}
	var wg sync.WaitGroup
	var failed [2]error
	for i, c := range [][2]*net.TCPConn{{opened, accepted}, {accepted, opened}} {
		wg.Go(func() {
			if err := hashed(c[0], c[1], size); err != nil {
				failed[i] = fmt.Errorf("%v to %v: %w", c[0].LocalAddr(), c[1].LocalAddr(), err)
			}
		})
	}
	wg.Wait()
	return errors.Join(failed[:]...)
}

var errDiffers = errors.New("what arrived is not what was sent")

// hashed moves bytes into one end of a connection and out of its other end.
func hashed(in, out *net.TCPConn, size int64) error {
	var wg sync.WaitGroup
	sent, arrived := sha256.New(), sha256.New()
	var errIn error
	wg.Go(func() {
		_, errIn = io.CopyBuffer(struct{ io.Writer }{in}, io.TeeReader(io.LimitReader(randomBytes(), size), sent), make([]byte, 256<<10))
		if errIn == nil {
			errIn = in.CloseWrite()
		}
	})
	n, errOut := io.CopyBuffer(arrived, struct{ io.Reader }{out}, make([]byte, 256<<10))
	if errOut != nil {
		_ = in.Close() // nobody takes the rest
	}
	wg.Wait()
	if err := errors.Join(errIn, errOut); err != nil {
		return fmt.Errorf("%d of %d bytes arrived: %w", n, size, err)
	}
	if n != size || !bytes.Equal(sent.Sum(nil), arrived.Sum(nil)) {
		return fmt.Errorf("%d of %d bytes arrived: %w", n, size, errDiffers)
	}
	return nil
}

// datagramBursts sends bursts of datagrams by one call each (UDP segmentation offload), and wants all of them.
func datagramBursts(ctx context.Context, from, to *Host, at netip.AddrPort) error {
	end, _ := ctx.Deadline()
	server, err := listenUDP(to, at)
	if err != nil {
		return err
	}
	defer server.Close()
	client, err := dialUDP(from, at)
	if err != nil {
		return err
	}
	defer client.Close()
	const segment, segments = 1000, 20
	if err := segmented(client, segment); err != nil {
		return err
	}
	burst, got := make([]byte, segment*segments), make([]byte, 2*segment)
	random := randomBytes()
	if err := errors.Join(server.SetDeadline(end), client.SetDeadline(end)); err != nil {
		return err
	}
	for range 20 {
		_, _ = random.Read(burst) // never fails
		if _, err := client.Write(burst); err != nil {
			return err
		}
		for rest := burst; len(rest) > 0; rest = rest[segment:] {
			if n, err := server.Read(got); err != nil || !bytes.Equal(got[:n], rest[:segment]) {
				return errors.Join(errDiffers, err)
			}
		}
	}
	return nil
}

// dialUDP opens a UDP socket on a host that sends to one address.
func dialUDP(h *Host, to netip.AddrPort) (conn *net.UDPConn, err error) {
	err = h.In(func() (err error) {
		if conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to)); err == nil {
			err = roomy(conn)
		}
		return err
	})
	return conn, err
}

// listenUDP opens a UDP socket on a host.
func listenUDP(h *Host, at netip.AddrPort) (conn *net.UDPConn, err error) {
	err = h.In(func() (err error) {
		if conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)); err == nil {
			err = roomy(conn)
		}
		return err
	})
	return conn, err
}

// roomy gives a socket so large a buffer that it is not where datagrams get lost.
func roomy(conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		inner = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
	})
	return errors.Join(err, inner)
}

// segmented makes a socket cut what is written to it into datagrams of this size.
func segmented(conn *net.UDPConn, size int) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) { inner = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size) })
	return errors.Join(err, inner)
}

// echoes answers every connection and every datagram with what comes in, until it is closed.
type echoes struct {
	tcp  *net.TCPListener
	udp  *net.UDPConn
	done sync.WaitGroup
}

func startEchoes(h *Host, at netip.AddrPort, end time.Time) (*echoes, error) {
	e := &echoes{}
	var err error
	if e.tcp, err = listenOn(h, at); err != nil {
		return nil, err
	}
	if e.udp, err = listenUDP(h, at); err != nil {
		_ = e.tcp.Close()
		return nil, err
	}
	e.done.Go(func() {
		for {
			conn, err := e.tcp.AcceptTCP()
			if err != nil {
				return
			}
			_ = conn.SetDeadline(end)
			e.done.Go(func() {
				defer conn.Close()
				// An error shows at the other end: the echo is not whole.
				if _, err := io.Copy(conn, conn); err == nil {
					_ = conn.CloseWrite()
				}
			})
		}
	})
	e.done.Go(func() {
		datagram := make([]byte, 1<<16)
		for {
			n, from, err := e.udp.ReadFromUDPAddrPort(datagram)
			if err != nil {
				return
			}
			_, _ = e.udp.WriteToUDPAddrPort(datagram[:n], from)
		}
	})
	return e, nil
}

// close is for when the clients are done.
func (e *echoes) close() {
	_ = e.tcp.Close()
	_ = e.udp.Close()
	e.done.Wait()
}

// tcpFlow sends bytes over a connection of their own and wants them back.
func tcpFlow(ctx context.Context, h *Host, to netip.AddrPort, data []byte) error {
	conn, err := dialFrom(ctx, h, to)
	if err != nil {
		return err
	}
	defer conn.Close()
	var writing sync.WaitGroup
	var errIn error
	writing.Go(func() {
		if _, errIn = conn.Write(data); errIn == nil {
			errIn = conn.CloseWrite()
		}
	})
	back, errOut := io.ReadAll(io.LimitReader(conn, int64(len(data))+1))
	if errOut != nil {
		_ = conn.Close()
	}
	writing.Wait()
	if err := errors.Join(errIn, errOut); err != nil {
		return fmt.Errorf("%d of %d bytes came back: %w", len(back), len(data), err)
	}
	if !bytes.Equal(back, data) {
		return fmt.Errorf("of %d bytes, %d came back: %w", len(data), len(back), errDiffers)
	}
	return nil
}

// udpFlow sends datagrams from a socket of their own, some at a time, and wants each back at most once. It waits for
// those that are missing until patience is over, and returns how many came back.
func udpFlow(h *Host, to netip.AddrPort, datagrams [][]byte, patience time.Duration) (back int, err error) {
	conn, err := dialUDP(h, to)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	const window = 4
	awaited, got := map[string]int{}, make([]byte, 1<<16)
	for len(datagrams) > 0 {
		now := datagrams[:min(window, len(datagrams))]
		datagrams = datagrams[len(now):]
		for _, d := range now {
			awaited[string(d)]++
			if _, err := conn.Write(d); err != nil {
				return back, err
			}
		}
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return back, err
		}
		for missing := len(now); missing > 0; missing-- {
			n, err := conn.Read(got)
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				break
			}
			if err != nil {
				return back, err
			}
			if awaited[string(got[:n])]--; awaited[string(got[:n])] < 0 {
				return back, fmt.Errorf("a datagram of %d bytes that was not sent, or was sent once and came twice: %w", n, errDiffers)
			}
			back++
		}
	}
	return back, nil
}
