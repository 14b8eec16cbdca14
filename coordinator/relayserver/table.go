// SPDX-License-Identifier: Apache-2.0

package relayserver

import (
	"errors"
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/pilot-protocol/pilot/underlay/relay"
)

// shards is how many parts the directory has: a change copies one of them. The last byte of an overlay address, which
// is part of a hash, chooses.
const shards = 256

var errFull = errors.New("relayserver: no slot is free")

// table holds the clients that are connected. Look-ups take no lock: they read immutable values.
type table struct {
	slots  []atomic.Pointer[client]
	shards [shards]atomic.Pointer[map[netip.Addr]*client]

	mu   sync.Mutex // held to change it
	free []uint32
	used int
}

func newTable(n int) *table {
	t := &table{slots: make([]atomic.Pointer[client], n)}
	for i := range n {
		t.free = append(t.free, uint32(n-1-i))
	}
	return t
}

// slot returns the client with a slot and its token, nil if there is none.
func (t *table) slot(n uint32, token relay.Token) *client {
	if uint64(n) >= uint64(len(t.slots)) {
		return nil
	}
	if c := t.slots[n].Load(); c != nil && c.token.Equal(token) {
		return c
	}
	return nil
}

// find returns the client with an overlay address, nil if it is not connected.
func (t *table) find(addr netip.Addr) *client {
	a := addr.As16()
	if m := t.shards[a[15]].Load(); m != nil {
		return (*m)[addr]
	}
	return nil
}

// add gives a client a slot and makes it known. It returns the one with the same address that it replaces, if any.
func (t *table) add(c *client) (old *client, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.free) == 0 {
		return nil, errFull
	}
	c.slot = t.free[len(t.free)-1]
	t.free = t.free[:len(t.free)-1]
	t.used++
	t.slots[c.slot].Store(c)
	old = t.find(c.addr)
	t.change(c.addr, c)
	return old, nil
}

// remove takes a client out.
func (t *table) remove(c *client) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.slots[c.slot].Store(nil)
	t.free = append(t.free, c.slot)
	t.used--
	if t.find(c.addr) == c {
		t.change(c.addr, nil)
	}
}

// change replaces what an address leads to. The caller holds mu.
func (t *table) change(addr netip.Addr, c *client) {
	a := addr.As16()
	next := make(map[netip.Addr]*client)
	if old := t.shards[a[15]].Load(); old != nil {
		maps.Copy(next, *old)
	}
	if next[addr] = c; c == nil {
		delete(next, addr)
	}
	t.shards[a[15]].Store(&next)
}

// count returns how many clients there are.
func (t *table) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.used
}
