// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// Bits of the header that the kernel puts before a packet (struct virtio_net_hdr).
const (
	virtioHeader    = 10
	virtioNeedsCsum = 1
)

// watcher looks at the checksums of the packets that pass an interface.
type watcher struct {
	fd        int
	ethernet  int   // length of the link's header
	direction uint8 // PACKET_HOST or PACKET_OUTGOING
	ending    atomic.Bool
	ended     chan error
	seen      seen
	parts     map[string]*parts // of datagrams that were cut, by what their fragments share
}

// parts is what has come of a datagram that was cut. Fragments begin at even offsets, so sums can be added up.
type parts struct {
	sum         uint64
	have, whole int    // bytes; whole is 0 before the last fragment came
	came        string // offsets and lengths, in their order
}

// seen is what a watcher saw.
type seen struct {
	verified  map[string]int // packets by protocol whose checksum is right
	partial   int            // packets whose checksum the kernel is still to complete, and that are fit for it
	fragments int            // parts of datagrams; those that are whole are in verified
	bursts    int            // packets that stand for several
	longest   int
	dropped   uint32   // by the kernel, before the watcher saw them
	wrong     []string // the first few whose checksum is not right
}

func (s seen) String() string {
	return fmt.Sprintf("verified %v, %d to be completed, %d fragments, %d bursts, longest %d bytes, %d missed, %d wrong",
		s.verified, s.partial, s.fragments, s.bursts, s.longest, s.dropped, len(s.wrong))
}

// watch starts to look at the packets of an interface that the kernel sends (PACKET_OUTGOING) or that come in for
// the host (PACKET_HOST).
func watch(t testing.TB, h *Host, name string, direction uint8) *watcher {
	t.Helper()
	w := &watcher{direction: direction, ended: make(chan error, 1), seen: seen{verified: map[string]int{}}}
	if err := h.In(func() error { return w.open(name) }); err != nil {
		t.Fatalf("watch %s of %s: %v", name, h.Name(), err)
	}
	go func() { w.ended <- w.run() }()
	t.Cleanup(func() {
		w.ending.Store(true)
		if w.ended != nil {
			<-w.ended
		}
		_ = unix.Close(w.fd)
	})
	return w
}

func (w *watcher) open(name string) error {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	network := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	// Protocol 0 until it is bound, or it would begin with packets of every interface.
	if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	if err := unix.IoctlIfreq(w.fd, unix.SIOCGIFINDEX, request); err != nil {
		return err
	}
	index := request.Uint32()
	if err := unix.IoctlIfreq(w.fd, unix.SIOCGIFHWADDR, request); err != nil {
		return err
	}
	if request.Uint16() == unix.ARPHRD_ETHER {
		w.ethernet = 14
	}
	patience := unix.NsecToTimeval(50e6)
	return errors.Join(
		unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 256<<20),
		unix.SetsockoptInt(w.fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
		unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience),
		unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: network, Ifindex: int(index)}),
	)
}

// run looks at packets until it is told to end and none is left.
func (w *watcher) run() error {
	buf := make([]byte, virtioHeader+14+1<<16)
	for {
		n, from, err := unix.Recvfrom(w.fd, buf, unix.MSG_TRUNC)
		switch {
		case errors.Is(err, unix.EAGAIN):
			if w.ending.Load() {
				return nil
			}
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n > len(buf):
			return fmt.Errorf("a packet of %d bytes", n)
		default:
			if link, ok := from.(*unix.SockaddrLinklayer); ok && link.Pkttype == w.direction {
				w.look(buf[:virtioHeader], buf[virtioHeader:n])
			}
		}
	}
}

// stop returns what was seen, once all packets that came before were looked at.
func (w *watcher) stop(t testing.TB) seen {
	t.Helper()
	w.ending.Store(true)
	err := <-w.ended
	w.ended = nil
	if err != nil {
		t.Fatalf("watch: %v", err)
	}
	stats, err := unix.GetsockoptTpacketStats(w.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		t.Fatalf("watch: %v", err)
	}
	w.seen.dropped = stats.Drops
	return w.seen
}

func (w *watcher) look(virtio, frame []byte) {
	s := &w.seen
	s.longest = max(s.longest, len(frame))
	if virtio[1] != 0 {
		s.bursts++
	}
	if len(frame) < w.ethernet {
		return
	}
	d, err := dissect(frame[w.ethernet:])
	switch {
	case err != nil:
		s.fail("%v: %x", err, frame[:min(len(frame), 80)])
	case d.protocol == "":
	case d.fragment:
		s.fragments++
		if d.version == 6 {
			w.join(d)
		}
	case virtio[0]&virtioNeedsCsum != 0:
		start, offset := int(binary.NativeEndian.Uint16(virtio[6:])), int(binary.NativeEndian.Uint16(virtio[8:]))
		// The kernel adds the sum of the bytes to what the field holds, which has to be that of the pseudo-header.
		held := binary.BigEndian.Uint16(d.transport[d.field:])
		if start != w.ethernet+d.start || offset != d.field || held%0xffff != fold(d.pseudo)%0xffff {
			s.fail("%s to be completed, from %d at %d, holding %#04x instead of %#04x: %x",
				d.protocol, start, offset, held, fold(d.pseudo), frame[:min(len(frame), 80)])
			return
		}
		s.partial++
	case d.protocol == "UDP" && d.version == 4 && binary.BigEndian.Uint16(d.transport[d.field:]) == 0:
	case d.protocol == "UDP" && binary.BigEndian.Uint16(d.transport[d.field:]) == 0:
		s.fail("UDP without a checksum: %x", frame[:min(len(frame), 80)])
	case fold(d.pseudo+sum16(d.transport)) != 0xffff:
		s.fail("%s with a wrong checksum, virtio header %x: %x", d.protocol, virtio, frame[:min(len(frame), 80)])
	default:
		s.verified[d.protocol]++
	}
}

// join adds a fragment to what has come of its datagram, and looks at the checksum once that is whole.
func (w *watcher) join(d dissected) {
	key := string(d.header[4:8]) + string(d.addresses)
	if w.parts == nil {
		w.parts = map[string]*parts{}
	}
	p := w.parts[key]
	if p == nil {
		p = &parts{}
		w.parts[key] = p
	}
	offset := int(binary.BigEndian.Uint16(d.header[2:]) &^ 7)
	p.sum += sum16(d.transport)
	p.have += len(d.transport)
	p.came += fmt.Sprintf(" %d+%d", offset, len(d.transport))
	if d.header[3]&1 == 0 {
		p.whole = offset + len(d.transport)
	}
	if p.whole == 0 || p.have < p.whole {
		return
	}
	delete(w.parts, key)
	if fold(p.sum+sum16(d.addresses)+uint64(p.whole)+uint64(d.header[0])) != 0xffff || p.have != p.whole {
		w.seen.fail("a datagram of %d bytes with a wrong checksum, or with parts that came twice, in fragments%s", p.whole, p.came)
		return
	}
	w.seen.verified[d.protocol]++
}

func (s *seen) fail(format string, args ...any) {
	if len(s.wrong) < 20 {
		s.wrong = append(s.wrong, fmt.Sprintf(format+"\n", args...))
	}
}

// dissected is what of an IP packet the checksum is about.
type dissected struct {
	version   int
	protocol  string // "TCP", "UDP", "ICMPv6", or nothing for others
	fragment  bool
	start     int    // of the transport header, in the packet
	field     int    // of the checksum, in the transport header
	transport []byte // header and payload
	addresses []byte
	header    []byte // the fragment header of IPv6
	pseudo    uint64 // unfolded sum of the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1)
}

var errShort = errors.New("shorter than its headers say")

func dissect(p []byte) (d dissected, err error) {
	if len(p) == 0 {
		return d, errShort
	}
	var next byte
	d.version = int(p[0] >> 4)
	switch d.version {
	case 4:
		if len(p) < 20 {
			return d, errShort
		}
		size := int(binary.BigEndian.Uint16(p[2:]))
		d.start, next = int(p[0]&15)*4, p[9]
		if size > len(p) || size < d.start {
			return d, errShort
		}
		if sum := fold(sum16(p[:d.start])); sum != 0xffff {
			return d, fmt.Errorf("IPv4 header checksum: sum %#04x", sum)
		}
		d.fragment = binary.BigEndian.Uint16(p[6:])&0x3fff != 0
		d.transport = p[d.start:size]
		d.addresses = p[12:20]
	case 6:
		if len(p) < 40 {
			return d, errShort
		}
		size := 40 + int(binary.BigEndian.Uint16(p[4:]))
		d.start, next = 40, p[6]
		if size > len(p) {
			return d, errShort
		}
		d.addresses = p[8:40]
		if next, err = d.extensions(p[:size], next); err != nil {
			return d, err
		}
		d.transport = p[d.start:size]
	default:
		return d, nil // ARP and the like
	}
	length := 0
	switch {
	case next == unix.IPPROTO_TCP:
		d.protocol, d.field, length = "TCP", 16, 20
	case next == unix.IPPROTO_UDP:
		d.protocol, d.field, length = "UDP", 6, 8
	case next == unix.IPPROTO_ICMPV6 && d.version == 6:
		d.protocol, d.field, length = "ICMPv6", 2, 4
	default:
		return d, nil
	}
	if !d.fragment && len(d.transport) < length {
		return d, errShort
	}
	d.pseudo = sum16(d.addresses) + uint64(len(d.transport)) + uint64(next)
	return d, nil
}

// extensions walks over IPv6 extension headers (RFC 8200 section 4) and returns the protocol behind them.
func (d *dissected) extensions(p []byte, next byte) (byte, error) {
	for {
		switch next {
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_DSTOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_FRAGMENT:
			if len(p) < d.start+8 {
				return 0, errShort
			}
			length := 8 + 8*int(p[d.start+1])
			if next == unix.IPPROTO_FRAGMENT {
				length = 8
				d.fragment, d.header = true, p[d.start:d.start+8]
			}
			if next, d.start = p[d.start], d.start+length; d.start > len(p) {
				return 0, errShort
			}
		default:
			return next, nil
		}
	}
}

// sum16 adds up 16-bit words as RFC 1071 does, without folding.
func sum16(b []byte) (sum uint64) {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint64(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint64(b[0]) << 8
	}
	return sum
}

func fold(sum uint64) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// A checker that accepts everything would prove nothing.
func TestChecksumsAreLookedAt(t *testing.T) {
	// An echo request from ::1 to ::1, made by hand.
	packet := append([]byte{0x60, 0, 0, 0, 0, 9, unix.IPPROTO_ICMPV6, 64}, make([]byte, 32+9)...)
	packet[8+15], packet[8+31] = 1, 1
	icmp := packet[40:]
	copy(icmp, []byte{128, 0, 0, 0, 0, 1, 0, 2, 'x'})
	d, err := dissect(packet)
	if err != nil || d.protocol != "ICMPv6" || d.start != 40 {
		t.Fatalf("%+v, %v", d, err)
	}
	const want = 0xffff - (1 + 1 + 9 + 58 + 0x8000 + 1 + 2 + 'x'<<8) // by hand; no carry
	binary.BigEndian.PutUint16(icmp[2:], want)
	look := func(virtio ...byte) seen {
		w := watcher{seen: seen{verified: map[string]int{}}}
		w.look(append(virtio, make([]byte, virtioHeader-len(virtio))...), packet)
		return w.seen
	}
	if s := look(); s.verified["ICMPv6"] != 1 || len(s.wrong) != 0 {
		t.Fatalf("%v: %s", s, s.wrong)
	}
	for i := range packet {
		if i == 1 || i == 2 || i == 3 || i == 7 {
			continue // traffic class, flow label and hop limit are in no checksum
		}
		packet[i] ^= 0x20
		if s := look(); s.verified["ICMPv6"] != 0 {
			t.Errorf("a change of byte %d goes unnoticed", i)
		}
		packet[i] ^= 0x20
	}
	partial := binary.NativeEndian.AppendUint16([]byte{virtioNeedsCsum, 0, 0, 0, 0, 0}, 40)
	partial = binary.NativeEndian.AppendUint16(partial, 2)
	if s := look(partial...); s.partial != 0 || len(s.wrong) != 1 {
		t.Errorf("a complete checksum that is to be completed: %v", s)
	}
	binary.BigEndian.PutUint16(icmp[2:], fold(d.pseudo))
	if s := look(partial...); s.partial != 1 || len(s.wrong) != 0 {
		t.Errorf("a checksum that is to be completed: %v: %s", s, s.wrong)
	}
	if _, err := dissect(packet[:48]); err == nil {
		t.Error("a packet that was cut off is taken")
	}
}
