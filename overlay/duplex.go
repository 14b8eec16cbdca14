// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"fmt"

	"github.com/pilot-protocol/pilot/tun"
	"github.com/pilot-protocol/pilot/underlay"
)

// Where there are few processors one thread serves both directions: what arrives makes the kernel answer (with an
// acknowledgement, or the data that it allows) while the packet is being written to the device, and the same thread takes
// the answer at once. Two threads would have to wake each other for every burst, and would wait for the same processor.

// duplexBelow is how many processors are enough for a thread for each direction.
const duplexBelow = 4

// A device and an underlay on descriptors can be waited for together.
type (
	descriptorDevice interface {
		tun.Device
		Descriptors() []int
	}
	descriptorUnderlay interface {
		Underlay
		// Descriptors are those of the loops, in their order.
		Descriptors() []int
		// TryReceive is Receive that returns 0 instead of waiting.
		TryReceive(loop int, bursts []underlay.Burst) (int, error)
	}
)

// duplex is the state of the loop.
type duplex struct {
	under  descriptorUnderlay
	waiter *tun.Waiter
	first  int // the underlay's first descriptor in waiter
	out    *outbound
	in     *inbound
	bursts []underlay.Burst
}

// newDuplex returns nil where each direction is to have its own thread.
func newDuplex(o *Overlay) *duplex {
	device, ok := o.device.(descriptorDevice)
	if !ok || o.processors >= duplexBelow {
		return nil
	}
	under, ok := o.under.(descriptorUnderlay)
	if !ok {
		return nil
	}
	descriptors := device.Descriptors()
	waiter := tun.NewWaiter(append(descriptors, under.Descriptors()...))
	if waiter == nil {
		return nil
	}
	return &duplex{under: under, waiter: waiter, first: len(descriptors), out: newOutbound(o, device), in: newInbound(o), bursts: newBursts(firstBursts)}
}

func (d *duplex) run(ctx context.Context) error {
	for {
		d.waiter.Wait()
		if err := d.turn(); err != nil {
			if ended(ctx, err) {
				return nil
			}
			return fmt.Errorf("overlay: %w", err)
		}
	}
}

// wake makes the loop notice that a descriptor was closed.
func (d *duplex) wake() error {
	if d == nil {
		return nil
	}
	return d.waiter.Wake()
}

// close is for after the loop.
func (d *duplex) close() error {
	if d == nil {
		return nil
	}
	return d.waiter.Close()
}

// turn moves what is there in both directions.
func (d *duplex) turn() error {
	received := false
	for loop := range d.under.Loops() {
		if !d.waiter.Ready(d.first + loop) {
			continue
		}
		n, err := d.under.TryReceive(loop, d.bursts)
		if err == nil && n > 0 {
			received = true
			err = d.in.receive(d.bursts[:n])
			d.bursts = moreBursts(d.bursts, n)
		}
		if err != nil {
			return err
		}
	}
	// Also after a signal: nothing is known then.
	if received || d.waiter.Ready(0) || !d.waiter.Ready(d.first) {
		return d.out.drain(outBudget)
	}
	return nil
}
