// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"net"
	"testing"
)

// A comparison that finds nothing proves nothing.
func TestIntegrityNoticesOneBit(t *testing.T) {
	pair := func() (a, b *net.TCPConn) {
		t.Helper()
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		dialed, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		accepted, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = dialed.Close(); _ = accepted.Close() })
		return dialed.(*net.TCPConn), accepted.(*net.TCPConn)
	}
	const size = 1 << 20
	for _, flip := range []int{-1, 0, size / 2, size - 1} {
		in, left := pair()
		right, out := pair()
		relayed := make(chan error, 1)
		go func() {
			defer right.Close()
			block, at := make([]byte, 4096), 0
			for {
				n, err := left.Read(block)
				if flip >= at && flip < at+n {
					block[flip-at] ^= 1
				}
				at += n
				if _, errOut := right.Write(block[:n]); err != nil || errOut != nil {
					relayed <- errOut
					return
				}
			}
		}()
		err := hashed(in, out, size)
		if errRelay := <-relayed; errRelay != nil {
			t.Fatal(errRelay)
		}
		if (flip < 0) != (err == nil) || (flip >= 0 && !errors.Is(err, errDiffers)) {
			t.Errorf("byte %d changed: %v", flip, err)
		}
	}
}

func TestIntegrityByteCounts(t *testing.T) {
	for text, want := range map[string]int64{"1": 1, "84M": 84 << 20, "10G": 10 << 30, "3K": 3 << 10} {
		if got, err := byteCount(text); err != nil || got != want {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "0", "-1", "G", "1T", "99999999999G", "1.5G", "10g"} {
		if got, err := byteCount(text); err == nil {
			t.Errorf("%q is taken for %d", text, got)
		}
	}
}
