// SPDX-License-Identifier: Apache-2.0

package tun

import "testing"

func TestHeaderRoundTrip(t *testing.T) {
	for _, h := range []Header{
		{},
		{Partial: true, Start: 40, Offset: 16},
		{Kind: KindTCP, Segment: 1348, Length: 72, Partial: true, Start: 40, Offset: 16},
		{Kind: KindTCP, ECN: true, Segment: 1348, Length: 72, Partial: true, Start: 40, Offset: 16},
		{Kind: KindUDP, Segment: 1200, Length: 48, Partial: true, Start: 40, Offset: 6},
	} {
		var b [virtioSize]byte
		var got Header
		if h.encode(&b); !got.decode(&b, 9000) || got != h {
			t.Errorf("%+v became %+v by % x", h, got, b)
		}
	}
}

// Bursts of IPv4 are taken, for who has a use for them.
func TestHeaderOfIPv4(t *testing.T) {
	var h Header
	if !h.decode(&[virtioSize]byte{virtioNeedsCsum, virtioTCPv4, 40, 0, 0x44, 5, 20, 0, 16, 0}, 9000) || h.Kind != KindTCP || h.Start != 20 {
		t.Errorf("%+v", h)
	}
}

// Whatever a header says, it is refused or it lies within the packet.
func FuzzHeader(f *testing.F) {
	f.Add([]byte{1, 4, 72, 0, 0x44, 5, 40, 0, 16, 0}, 9000)
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 40)
	f.Add([]byte{1, 1, 0xff, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff}, 0)
	f.Fuzz(func(t *testing.T, raw []byte, n int) {
		if len(raw) < virtioSize {
			return
		}
		var h, again Header
		if !h.decode((*[virtioSize]byte)(raw), n) {
			return
		}
		if h.Partial && int(h.Start)+int(h.Offset)+2 > n || h.Kind != KindPacket && h.Segment == 0 || n < 0 {
			t.Errorf("%+v for %d bytes", h, n)
		}
		var b [virtioSize]byte
		if h.encode(&b); !again.decode(&b, n) || again != h {
			t.Errorf("%+v became %+v", h, again)
		}
	})
}
