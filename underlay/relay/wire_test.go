// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// the values of a second implementation's first test
func example() (Header, Control, Secret) {
	token := Token{1, 2, 3, 4, 5, 6, 7, 8}
	h := Header{Slot: 0x11223344, Token: token, Address: netip.MustParseAddr("fd00:1:2:3:4:5:6:7")}
	c := Control{
		Op: OpBound, Slot: 0x11223344, Token: token, ID: 0x0102030405060708, Cookie: [16]byte{15: 9},
		Observed: netip.MustParseAddrPort("192.0.2.1:4242"),
	}
	return h, c, Secret{0: 7}
}

func TestWireVectors(t *testing.T) {
	h, c, secret := example()
	for _, v := range []struct {
		name string
		got  []byte
		want string
	}{
		{"header", h.Append(nil), "25010000 11223344 0102030405060708 fd000001000200030004000500060007"},
		{"control", c.Append(nil, &secret), "26010300 11223344 0102030405060708 0102030405060708 00000000000000000000000000000009" +
			"00000000000000000000ffffc0000201 1092 000000000000 0ce54b45c5a0489a403854121d4f0653"},
		{"hello", Hello{Slot: 1, Pass: []byte{0xaa}}.Append(nil), "0011 01 01000000 00000001 0000000000000000 aa"},
		{"data", AppendData(nil, h.Address, []byte{1, 2}), "0012 03 fd000001000200030004000500060007 0102"},
	} {
		if want := strings.ReplaceAll(v.want, " ", ""); hex.EncodeToString(v.got) != want {
			t.Errorf("%s: got %x", v.name, v.got)
		}
	}
}

func TestHeaderRoundTrip(t *testing.T) {
	h, _, _ := example()
	d := append(h.Append(nil), 0x24)
	if got, ok := ParseHeader(d); !ok || got != h {
		t.Errorf("came back as %+v", got)
	}
	for name, bad := range map[string][]byte{
		"empty": nil, "header alone": d[:HeaderSize], "another type": append([]byte{0x24}, d[1:]...),
		"another version": append([]byte{0x25, 2}, d[2:]...), "reserved bits": append([]byte{0x25, 1, 0, 1}, d[4:]...),
	} {
		if _, ok := ParseHeader(bad); ok {
			t.Errorf("%s: accepted", name)
		}
	}
	if n := testing.AllocsPerRun(100, func() {
		got, ok := ParseHeader(d)
		if !ok {
			t.Fatal("refused")
		}
		got.Put(d)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestControlIsAuthentic: a control with any bit changed, or of another connection, is not taken.
func TestControlIsAuthentic(t *testing.T) {
	_, c, secret := example()
	d := c.Append(nil, &secret)
	if len(d) != ControlSize {
		t.Fatalf("%d bytes", len(d))
	}
	if got, ok := ParseControl(d); !ok || got != c || !VerifyControl(d, &secret) {
		t.Fatalf("came back as %+v", got)
	}
	for i := range d {
		for bit := range 8 {
			bad := bytes.Clone(d)
			bad[i] ^= 1 << bit
			if _, ok := ParseControl(bad); ok && VerifyControl(bad, &secret) {
				t.Fatalf("accepted with bit %d of byte %d flipped", bit, i)
			}
		}
	}
	if VerifyControl(d, &Secret{0: 8}) {
		t.Error("accepted with another secret")
	}
}

func TestFrames(t *testing.T) {
	_, c, _ := example()
	welcome := Welcome{UDP: 7745, Slot: 5, Token: c.Token, Secret: Secret{3}, Observed: c.Observed, Rate: 1000, MaxDatagram: MaxDatagram}
	hello := Hello{Slot: 5, Token: c.Token, Pass: []byte("pass")}
	var stream []byte
	stream = hello.Append(stream)
	stream = welcome.Append(stream)
	stream = AppendFrame(stream, 99, []byte("from the future"))
	stream = AppendData(stream, netip.MustParseAddr("fd00::1"), bytes.Repeat([]byte{1}, MaxDatagram))
	r := bufio.NewReaderSize(bytes.NewReader(stream), FrameBuffer)
	next := func(want FrameType) []byte {
		kind, body, err := ReadFrame(r)
		if err != nil || kind != want {
			t.Fatalf("type %d, %v", kind, err)
		}
		return body
	}
	if h := must(ParseHello(next(FrameHello))); h.Slot != 5 || h.Token != c.Token || string(h.Pass) != "pass" {
		t.Errorf("hello came back as %+v", h)
	}
	if w := must(ParseWelcome(next(FrameWelcome))); w != welcome {
		t.Errorf("welcome came back as %+v", w)
	}
	next(99)
	if a, d, ok := ParseData(next(FrameData)); !ok || a != netip.MustParseAddr("fd00::1") || len(d) != MaxDatagram {
		t.Errorf("data of %d bytes for %v", len(d), a)
	}
	if _, _, err := ReadFrame(r); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	if _, _, err := ReadFrame(bufio.NewReaderSize(bytes.NewReader(stream[:30]), FrameBuffer)); err != nil {
		t.Error(err) // the hello is whole
	}
	if _, _, err := ReadFrame(bufio.NewReaderSize(bytes.NewReader(stream[:20]), FrameBuffer)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut: %v", err)
	}
	if _, _, err := ReadFrame(bufio.NewReaderSize(bytes.NewReader([]byte{0xff, 0xff, 3, 0}), FrameBuffer)); !errors.Is(err, ErrFrame) {
		t.Errorf("too long: %v", err)
	}
}

func FuzzHeader(f *testing.F) {
	h, _, _ := example()
	f.Add(append(h.Append(nil), 1))
	f.Fuzz(func(t *testing.T, d []byte) {
		if h, ok := ParseHeader(d); ok && !bytes.Equal(h.Append(nil), d[:HeaderSize]) {
			t.Errorf("%x is written as %x", d[:HeaderSize], h.Append(nil))
		}
	})
}

func FuzzControl(f *testing.F) {
	_, c, secret := example()
	f.Add(c.Append(nil, &secret))
	f.Add(Control{Op: OpBind}.Append(nil, &secret))
	f.Fuzz(func(t *testing.T, d []byte) {
		c, ok := ParseControl(d)
		if ok && VerifyControl(d, &secret) {
			if again := c.Append(nil, &secret); !bytes.Equal(again, d) && c.Observed.IsValid() && !c.Observed.Addr().Is4() {
				t.Errorf("%x is written as %x", d, again)
			}
		}
	})
}

func FuzzFrames(f *testing.F) {
	f.Add(Hello{Pass: []byte{1}}.Append(nil))
	f.Add(Welcome{UDP: 1}.Append(nil))
	f.Add(AppendData(nil, netip.MustParseAddr("fd00::1"), []byte{1}))
	f.Add(AppendFrame(AppendFrame(nil, FramePing, make([]byte, 8)), FrameBye, []byte{1}))
	f.Fuzz(func(t *testing.T, stream []byte) {
		r := bufio.NewReaderSize(bytes.NewReader(stream), FrameBuffer)
		read := 0
		for {
			kind, body, err := ReadFrame(r)
			if err != nil {
				break
			}
			read += FrameHeaderSize + len(body)
			if h, err := ParseHello(body); kind == FrameHello && err == nil && !bytes.HasSuffix(h.Append(nil), body) {
				t.Errorf("hello %x is written as %x", body, h.Append(nil))
			}
			_, _ = ParseWelcome(body)
			if a, d, ok := ParseData(body); ok && !bytes.HasSuffix(AppendData(nil, a, d), body) {
				t.Errorf("data %x is written as %x", body, AppendData(nil, a, d))
			}
			_, _ = ParseAddress(body)
		}
		if read > len(stream) {
			t.Errorf("%d of %d bytes", read, len(stream))
		}
	})
}
