// SPDX-License-Identifier: Apache-2.0

// Package parts cuts a packet that no record can carry over a narrow path into parts, and makes it whole again at the other
// end. A part is:
//
//	4  packet: the same in all its parts, another one in each packet of the sender in this session
//	1  index: from 0
//	1  count: of the packet's parts, 2 to 4
//	…  bytes of the packet, at most ⌈2048 / count⌉
//
// Each part travels in a record of its own: the replay window has sorted out what came twice, and the tag what is not the
// sender's.
package parts

import (
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// HeaderSize is what a part has before the packet's bytes.
	HeaderSize = 6
	// MaxPacket bounds the packet, in bytes.
	MaxPacket = 2048

	minParts = 2
	maxParts = 4
	// slots is of how many packets parts are kept at a time.
	slots = 16
	// lifetime is how long parts are kept: what is late by more was sent over another path, or never was.
	lifetime = 2 * time.Second
)

// Errors of Assembler.Add. The part is dropped, and what came before is kept.
var (
	// ErrMalformed: no part, or one that does not belong to those that came before it.
	ErrMalformed = errors.New("malformed part of a packet")
	// ErrDuplicate: the sender used one place twice.
	ErrDuplicate = errors.New("part of a packet that came before")
)

// Count is in how many parts a packet travels, if room is what a record has for header and bytes. It is 0 for a packet that
// can't, and for one that need not.
func Count(length, room int) int {
	if length > MaxPacket || length+HeaderSize <= room || room <= HeaderSize {
		return 0
	}
	n := max(minParts, (length+room-HeaderSize-1)/(room-HeaderSize))
	if n > maxParts {
		return 0
	}
	return n
}

// Append appends one part of a packet, of the count of them that Count said. All have the same length but the last, which may be
// shorter.
func Append(dst []byte, p []byte, id uint32, index, count int) []byte {
	size := (len(p) + count - 1) / count
	dst = binary.BigEndian.AppendUint32(dst, id)
	dst = append(dst, byte(index), byte(count))
	return append(dst, p[index*size:min((index+1)*size, len(p))]...)
}

// Assembler makes packets whole. It has room for a fixed number of them, and gives the oldest up for a new one. The zero value
// is ready. Safe for concurrent use.
type Assembler struct {
	mu    sync.Mutex // held to copy a part, or a packet
	slots [slots]slot
}

// slot is a packet of which some parts have come.
type slot struct {
	id     uint32
	count  int // 0: the slot is free
	flags  uint8
	class  uint8
	have   uint8 // a bit for each part
	born   time.Duration
	length [maxParts]int
	body   [MaxPacket + maxParts]byte
}

// Add takes a part in, and returns the packet, appended to dst, if that is whole now, with the class that it has: that of the
// outer header of its parts, congestion experienced if one of them met it (RFC 3168, section 5.3). flags are what the
// sender says about the packet: they are the same for all parts. lost is told of packets that were given up.
// Errors: ErrMalformed, ErrDuplicate.
func (a *Assembler) Add(dst []byte, part []byte, flags, class uint8, now time.Duration, lost *atomic.Uint64) ([]byte, uint8, error) {
	if len(part) <= HeaderSize {
		return dst, 0, ErrMalformed
	}
	id, index, count := binary.BigEndian.Uint32(part), int(part[4]), int(part[5])
	body := part[HeaderSize:]
	if count < minParts || count > maxParts || index >= count || len(body) > room(count) {
		return dst, 0, ErrMalformed
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.find(id, now, lost)
	switch {
	case s.count == 0:
		s.id, s.count, s.flags, s.class, s.have, s.born = id, count, flags, class, 0, now
	case s.count != count || s.flags != flags:
		return dst, 0, ErrMalformed
	case s.have&(1<<index) != 0:
		return dst, 0, ErrDuplicate
	}
	if class&congested == congested {
		s.class |= congested
	}
	s.have |= 1 << index
	s.length[index] = copy(s.body[index*room(count):], body)
	if s.have != 1<<count-1 {
		return dst, 0, nil
	}
	s.count = 0
	start := len(dst)
	for i := range count {
		at := i * room(count)
		dst = append(dst, s.body[at:at+s.length[i]]...)
	}
	if len(dst)-start > MaxPacket {
		return dst[:start], 0, ErrMalformed
	}
	return dst, s.class, nil
}

// congested is the ECN field that says so (RFC 3168, section 5).
const congested = 3

// room is how long a part may be.
func room(count int) int { return (MaxPacket + count - 1) / count }

// find returns the packet's slot, or makes room for it. What is too old goes.
func (a *Assembler) find(id uint32, now time.Duration, lost *atomic.Uint64) *slot {
	oldest := &a.slots[0]
	for i := range a.slots {
		s := &a.slots[i]
		if s.count != 0 && now-s.born >= lifetime {
			s.count = 0
			lost.Add(1)
		}
		if s.count != 0 && s.id == id {
			return s
		}
		if s.count == 0 && oldest.count != 0 || s.count != 0 && oldest.count != 0 && s.born < oldest.born {
			oldest = s
		}
	}
	if oldest.count != 0 {
		oldest.count = 0
		lost.Add(1)
	}
	return oldest
}
