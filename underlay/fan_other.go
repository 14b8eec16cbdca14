// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package underlay

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// serve reads all sockets of the fan, as long as there are any, with a goroutine for each.
func (f *fan) serve(ctx context.Context, put func(*Burst)) {
	var group sync.WaitGroup
	defer group.Wait()
	serving := map[uint16]bool{}
	for {
		open := *f.open.Load()
		if len(open) == 0 {
			return
		}
		for id, s := range open {
			if serving[id] {
				continue
			}
			serving[id] = true
			group.Go(func() { f.readOne(id, s, put) })
		}
		select {
		case <-ctx.Done():
			f.keep(nil) // nothing else ends a waiting receive
			return
		case <-f.changed:
		}
	}
}

func (f *fan) readOne(id uint16, s *socket, put func(*Burst)) {
	buffers := newFanBuffers()[:1]
	for {
		switch err := f.drain(id, s, buffers, true, put); {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			time.Sleep(10 * time.Millisecond) // the network's error, about an earlier datagram
		}
	}
}
