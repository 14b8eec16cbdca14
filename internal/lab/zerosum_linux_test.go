// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// zeroSum makes a UDP payload of an even size whose checksum comes out as zero. Zero stands for "no checksum" and is
// forbidden in IPv6, so it has to be sent as 0xffff (RFC 768, RFC 8200 section 8.1). One datagram in 65536 is such.
func zeroSum(from, to netip.AddrPort, size int) []byte {
	payload := make([]byte, size)
	_, _ = randomBytes().Read(payload[:size-2]) // never fails
	source, destination := from.Addr().As16(), to.Addr().As16()
	length := uint64(8 + size)
	sum := sum16(source[:]) + sum16(destination[:]) + length + unix.IPPROTO_UDP +
		uint64(from.Port()) + uint64(to.Port()) + length + sum16(payload)
	binary.BigEndian.PutUint16(payload[size-2:], 0xffff-fold(sum))
	return payload
}

func TestIntegrityOfDatagramsWithChecksumZero(t *testing.T) {
	x := newTunneled(t, open(t), 1)
	from, to := netip.AddrPortFrom(x.addresses[0], 7008), netip.AddrPortFrom(x.addresses[1], 7007)
	server, err := startEchoes(x.hosts[1], to, time.Now().Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	defer server.close()
	var watchers [2]*watcher
	for i, h := range x.hosts {
		watchers[i] = watch(t, h, "pilot0", unix.PACKET_HOST)
	}
	conn, err := listenUDP(x.hosts[0], from)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, size := range []int{2, 40, 512, 1300, wholeDatagram} {
		if err := wantBack(conn, to, zeroSum(from, to, size), size); err != nil {
			t.Errorf("a datagram of %d bytes with the checksum zero: %v", size, err)
		}
	}
	// The same in a burst that is cut behind the program's back: at the sender's TUN, or later.
	const segment = 1000
	var burst []byte
	for range 20 {
		burst = append(burst, zeroSum(from, to, segment)...)
	}
	if err := segmented(conn, segment); err != nil {
		t.Fatal(err)
	}
	if err := wantBack(conn, to, burst, segment); err != nil {
		t.Errorf("a burst of datagrams with the checksum zero: %v", err)
	}
	for i, w := range watchers {
		if s := w.stop(t); len(s.wrong) > 0 {
			t.Errorf("handed to %s: %v\n%s", x.hosts[i].Name(), s, s.wrong)
		}
	}
}

// wantBack sends bytes and waits until all of them came back in datagrams of this size.
func wantBack(conn *net.UDPConn, to netip.AddrPort, data []byte, size int) error {
	if _, err := conn.WriteToUDPAddrPort(data, to); err != nil {
		return err
	}
	if err := conn.SetReadDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return err
	}
	missing, got := map[string]bool{}, make([]byte, 1<<16)
	for rest := data; len(rest) > 0; rest = rest[size:] {
		missing[string(rest[:size])] = true
	}
	for len(missing) > 0 {
		n, err := conn.Read(got)
		if err != nil {
			return fmt.Errorf("%d of %d did not come back: %w", len(missing), len(data)/size, err)
		}
		if !missing[string(got[:n])] {
			return errDiffers
		}
		delete(missing, string(got[:n]))
	}
	return nil
}
