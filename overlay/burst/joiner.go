// SPDX-License-Identifier: Apache-2.0

package burst

import (
	"bytes"
	"encoding/binary"

	"github.com/pilot-protocol/pilot/overlay/packet"
	"github.com/pilot-protocol/pilot/tun"
)

// maxPacket keeps a burst's length within what its own length field can count.
const maxPacket = packet.HeaderSize + 65535

// maxJoined is in how many packets a burst may come: the kernel refuses UDP bursts of more segments than 64.
const maxJoined = tun.MaxPieces

// Joiner joins packets that follow one another in a flow. What goes in are packets whose checksum is still to be computed;
// what comes out is one packet, in pieces, for tun.Device.Write. The zero value joins nothing: see Offloads.
type Joiner struct {
	// Offloads is what the device takes.
	Offloads tun.Offloads

	pieces [maxJoined][]byte
	n      int
	info   packet.Info // of the first packet
	head   int         // bytes of headers
	size   int         // payload of each packet but the last
	length int         // of the burst
	next   uint32      // TCP: the sequence number that comes next
	full   bool        // nothing can follow
	header tun.Header
}

// Empty reports whether there is nothing to take.
func (j *Joiner) Empty() bool { return j.n == 0 }

// Add takes a packet that has passed Parse, without its checksum. It reports false, and takes nothing, for one that does
// not continue what was added before; a Joiner that is Empty takes each. The packet is kept, and may be changed, until
// Take.
func (j *Joiner) Add(p []byte, info *packet.Info) bool {
	if j.n == 0 {
		j.begin(p, info)
		return true
	}
	if j.full || len(p) <= j.head || len(p)-j.head > j.size || j.length+len(p)-j.head > maxPacket || !j.continues(p, info) {
		return false
	}
	n := len(p) - j.head
	j.pieces[j.n] = p[j.head:]
	j.n++
	j.length += n
	j.next += uint32(n)
	if n < j.size || j.n == maxJoined {
		j.full = true
	}
	if info.Proto == packet.TCP && info.TCPFlags&(packet.FIN|psh) != 0 {
		j.pieces[0][info.Upper+13] |= info.TCPFlags & (packet.FIN | psh)
		j.full = true
	}
	return true
}

func (j *Joiner) begin(p []byte, info *packet.Info) {
	head, _ := headOf(p, info)
	j.pieces[0], j.n, j.info, j.head, j.length = p, 1, *info, head, len(p)
	j.size = len(p) - head
	j.full = j.size == 0 || info.Upper != packet.HeaderSize
	switch info.Proto {
	case packet.TCP:
		j.next = binary.BigEndian.Uint32(p[info.Upper+4:]) + uint32(j.size)
		// What may stand in the middle of a burst: data with an acknowledgement.
		if info.TCPFlags&^(cwr|ece) != packet.ACK || j.Offloads&tun.OffloadTCP == 0 {
			j.full = true
		}
	case packet.UDP:
		if int(binary.BigEndian.Uint16(p[info.Upper+4:])) != len(p)-info.Upper || j.Offloads&tun.OffloadUDP == 0 {
			j.full = true
		}
	}
}

const ece = 1 << 6

// continues compares headers: all but lengths, sequence number, checksum and the last packet's flags must be the same.
func (j *Joiner) continues(p []byte, info *packet.Info) bool {
	first := j.pieces[0]
	if info.Proto != j.info.Proto || info.Upper != j.info.Upper ||
		[4]byte(p) != [4]byte(first) || !bytes.Equal(p[6:packet.HeaderSize], first[6:packet.HeaderSize]) {
		return false
	}
	u, f := p[packet.HeaderSize:], first[packet.HeaderSize:]
	if [4]byte(u) != [4]byte(f) { // ports
		return false
	}
	if info.Proto == packet.UDP {
		return int(binary.BigEndian.Uint16(u[4:])) == len(u)
	}
	return binary.BigEndian.Uint32(u[4:]) == j.next &&
		[4]byte(u[8:]) == [4]byte(f[8:]) && u[12] == f[12] && // acknowledgement, length of the header
		info.TCPFlags&^(packet.FIN|psh) == j.info.TCPFlags&^cwr &&
		[2]byte(u[14:]) == [2]byte(f[14:]) && [2]byte(u[18:]) == [2]byte(f[18:]) && // window, urgent pointer
		bytes.Equal(u[tcpHeader:j.head-packet.HeaderSize], f[tcpHeader:j.head-packet.HeaderSize])
}

// Take returns what was added, as one packet with what is left to do to it, and begins anew. Both are the caller's until
// the next Add. It panics on a Joiner that is Empty.
func (j *Joiner) Take() (*tun.Header, [][]byte) {
	first := j.pieces[0]
	j.header = tun.Header{Partial: true, Start: uint16(j.info.Upper), Offset: uint16(j.info.ChecksumOffset())}
	if j.n > 1 {
		j.header.Kind, j.header.Segment, j.header.Length = tun.KindTCP, uint16(j.size), uint16(j.head)
		binary.BigEndian.PutUint16(first[4:], uint16(j.length-packet.HeaderSize))
		if j.info.Proto == packet.UDP {
			j.header.Kind = tun.KindUDP
			binary.BigEndian.PutUint16(first[j.info.Upper+4:], uint16(j.length-j.info.Upper))
		}
		j.header.ECN = j.info.Proto == packet.TCP && j.info.TCPFlags&cwr != 0
	}
	packet.SetPartial(first, &j.info, j.length)
	n := j.n
	j.n = 0
	return &j.header, j.pieces[:n]
}
