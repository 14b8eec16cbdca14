// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"context"
	"sync"
)

// streams are the connections that a server has handed over, of which net/http knows nothing any more.
type streams struct {
	ctx     context.Context // ends them
	end     context.CancelFunc
	mu      sync.Mutex // guards closing
	closing bool
	running sync.WaitGroup
}

func newStreams() *streams {
	s := &streams{}
	s.ctx, s.end = context.WithCancel(context.Background())
	return s
}

// begin counts one more, unless the server is ending.
func (s *streams) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	s.running.Add(1)
	return true
}

// close ends them all, and waits until they have.
func (s *streams) close() {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	s.end()
	s.running.Wait()
}
