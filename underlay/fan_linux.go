// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"context"

	"golang.org/x/sys/unix"
)

// serve reads all sockets of the fan, as long as there are any: one thread that waits for all of them.
func (f *fan) serve(ctx context.Context, put func(*Burst)) {
	stop := context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if !f.closed {
			f.bell.ring()
		}
	})
	defer stop()
	buffers := newFanBuffers()
	for ctx.Err() == nil {
		f.mu.Lock()
		open := *f.open.Load()
		if len(open) == 0 || f.closed {
			f.mu.Unlock()
			return
		}
		f.bell.silence()
		fds := []unix.PollFd{{Fd: int32(f.bell.fd), Events: unix.POLLIN}}
		f.mu.Unlock()
		ids := []uint16{0}
		for id, s := range open {
			fds = append(fds, unix.PollFd{Fd: int32(s.fd), Events: unix.POLLIN})
			ids = append(ids, id)
		}
		for ctx.Err() == nil && fds[0].Revents == 0 {
			if _, err := unix.Poll(fds, 1000); err != nil {
				continue
			}
			for i := range fds[1:] {
				if fds[i+1].Revents != 0 && f.drain(ids[i+1], open[ids[i+1]], buffers, false, put) != nil {
					fds[i+1].Fd = -1 // closed, or it fails: what comes later shows that too
				}
			}
		}
	}
}
