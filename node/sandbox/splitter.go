// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"net/netip"
	"os"
	"sync/atomic"

	"github.com/pilot-protocol/pilot/tun"
)

// turns is how many packets for the world outside are handed on before whoever reads without waiting has another look at
// what else there is to do.
const turns = 16

// device is what a splitter is put in front of.
type device interface {
	tun.Device
	Descriptors() []int
}

// splitter is a sandbox's interface as the overlay sees it: of what the sandbox sends it reads only what is for the network.
// All else goes to the gateway, on the reader's thread, and run brings back what that answers.
type splitter struct {
	device
	mtu     int // of the network
	outside tun.Device
	network atomic.Pointer[netip.Prefix] // nil: nothing is for the network yet

	pieces [1][]byte // of the one goroutine that reads
}

// Set says which addresses are the network's.
func (s *splitter) Set(network netip.Prefix) { s.network.Store(&network) }

// MTU is the network's, not the interface's: packets for the world outside may be longer.
func (s *splitter) MTU() int { return s.mtu }

// Read implements [tun.Device].
func (s *splitter) Read(buf []byte, h *tun.Header, wait bool) ([]byte, error) {
	for turn := 0; wait || turn < turns; turn++ {
		p, err := s.device.Read(buf, h, wait)
		if len(p) == 0 || err != nil || s.inside(p) {
			return p, err
		}
		s.pieces[0] = p
		// What the gateway has no use for is lost, as on any network; its end is seen by run.
		_ = s.outside.Write(h, s.pieces[:])
	}
	return nil, nil
}

// inside tells whether a packet is for the network.
func (s *splitter) inside(p []byte) bool {
	const destination, header = 24, 40
	if len(p) < header || p[0]>>4 != 6 {
		return false
	}
	network := s.network.Load()
	return network != nil && network.Contains(netip.AddrFrom16([16]byte(p[destination:header])))
}

// run gives the sandbox what comes from outside, until the gateway's device is closed.
func (s *splitter) run() error {
	buf, pieces := make([]byte, tun.BufferSize), make([][]byte, 1)
	var h tun.Header
	for {
		p, err := s.outside.Read(buf, &h, true)
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		pieces[0] = p
		// The sandbox may be gone already, and its packets with it.
		_ = s.device.Write(&h, pieces)
	}
}
