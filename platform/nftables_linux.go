// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The little of nf_tables' netlink protocol that a fence needs. Numbers of the protocol's own are in network byte order, the
// headers of messages and attributes in the host's.

// nftSocket talks to the kernel's nf_tables. It is for one goroutine at a time.
type nftSocket struct {
	fd       int
	sequence uint32
	buffer   []byte
}

// nftAnswerLimit bounds the wait for the kernel's answer, in seconds. It is there when a message has been sent: only a defect
// would have us wait.
const nftAnswerLimit = 5

const (
	nftHeader = 4 // struct nfgenmsg: family, version, resource
	// nftTypeMask leaves out the flags in an attribute's type (NLA_TYPE_MASK).
	nftTypeMask = ^uint16(unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
	// nftSubsystem is the upper half of the kinds of messages.
	nftSubsystem = unix.NFNL_SUBSYS_NFTABLES << 8
)

// errNoAnswer says that what the kernel sent ends too early.
var errNoAnswer = errors.New("the kernel's answer is incomplete")

func openNFT() (*nftSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	if err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: nftAnswerLimit})
	}
	if err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	return &nftSocket{fd: fd, buffer: make([]byte, 32<<10)}, nil // the size that the kernel fills at most in a dump
}

func (s *nftSocket) close() error { return os.NewSyscallError("close", unix.Close(s.fd)) }

// nftMessage is a request without its header.
type nftMessage struct {
	kind, flags uint16
	attributes  []byte
}

// message appends a request with the next sequence number.
func (s *nftSocket) message(to []byte, kind, flags uint16, family uint8, resource uint16, attributes []byte) []byte {
	s.sequence++
	to = binary.NativeEndian.AppendUint32(to, uint32(unix.NLMSG_HDRLEN+nftHeader+len(attributes)))
	to = binary.NativeEndian.AppendUint16(to, kind)
	to = binary.NativeEndian.AppendUint16(to, unix.NLM_F_REQUEST|flags)
	to = binary.NativeEndian.AppendUint32(to, s.sequence)
	to = binary.NativeEndian.AppendUint32(to, 0) // to the kernel
	to = append(to, family, 0)
	to = binary.BigEndian.AppendUint16(to, resource)
	return append(to, attributes...)
}

// commit has the kernel do all that the messages say, or nothing. After an error the socket may hold answers that nobody
// reads: it has to be closed.
func (s *nftSocket) commit(messages ...nftMessage) error {
	batch := s.message(nil, unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil)
	for i, m := range messages {
		if i == len(messages)-1 {
			m.flags |= unix.NLM_F_ACK
		}
		batch = s.message(batch, nftSubsystem|m.kind, m.flags, unix.NFPROTO_IPV6, 0, m.attributes)
	}
	last := s.sequence
	batch = s.message(batch, unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil)
	if err := s.send(batch); err != nil {
		return err
	}
	return s.receive(func(h syscall.NlMsghdr, _ []byte) (done bool) {
		return h.Type == unix.NLMSG_ERROR && h.Seq == last
	})
}

// rules returns the attributes of each rule of a chain, in their order; none, if there is no such chain.
func (s *nftSocket) rules(table, chain string) (list [][]byte, err error) {
	request := slices.Concat(nftText(unix.NFTA_RULE_TABLE, table), nftText(unix.NFTA_RULE_CHAIN, chain))
	if err := s.send(s.message(nil, nftSubsystem|unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, unix.NFPROTO_IPV6, 0, request)); err != nil {
		return nil, err
	}
	mine := s.sequence
	err = s.receive(func(h syscall.NlMsghdr, body []byte) (done bool) {
		switch {
		case h.Seq != mine:
		case h.Type == unix.NLMSG_DONE:
			return true
		case h.Type == nftSubsystem|unix.NFT_MSG_NEWRULE && len(body) >= nftHeader:
			// Older kernels give the rules of all chains.
			attributes := slices.Clone(body[nftHeader:])
			if nftString(attributes, unix.NFTA_RULE_TABLE) == table && nftString(attributes, unix.NFTA_RULE_CHAIN) == chain {
				list = append(list, attributes)
			}
		}
		return false
	})
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	return list, err
}

func (s *nftSocket) send(b []byte) error {
	return os.NewSyscallError("sendto", unix.Sendto(s.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
}

// receive gives the kernel's messages to take until that is done, or one of them is an error.
func (s *nftSocket) receive(take func(syscall.NlMsghdr, []byte) (done bool)) error {
	for {
		n, from, err := unix.Recvfrom(s.fd, s.buffer, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return os.NewSyscallError("recvfrom", err)
		}
		if from, ok := from.(*unix.SockaddrNetlink); !ok || from.Pid != 0 {
			continue // somebody else's
		}
		messages, err := syscall.ParseNetlinkMessage(s.buffer[:n])
		if err != nil {
			return fmt.Errorf("nf_tables: %w", err)
		}
		for _, m := range messages {
			if m.Header.Type == unix.NLMSG_ERROR {
				if len(m.Data) < 4 {
					return errNoAnswer
				}
				if code := int32(binary.NativeEndian.Uint32(m.Data)); code != 0 {
					return fmt.Errorf("nf_tables: %w", unix.Errno(-code))
				}
			}
			if take(m.Header, m.Data) {
				return nil
			}
		}
	}
}

// nftAttribute encodes one attribute.
func nftAttribute(kind uint16, value []byte) []byte {
	return nl.NewRtAttr(int(kind), value).Serialize()
}

func nftNested(kind uint16, parts ...[]byte) []byte {
	return nftAttribute(unix.NLA_F_NESTED|kind, slices.Concat(parts...))
}

func nftText(kind uint16, text string) []byte { return nftAttribute(kind, append([]byte(text), 0)) }

func nftNumber(kind uint16, v uint32) []byte {
	return nftAttribute(kind, binary.BigEndian.AppendUint32(nil, v))
}

// nftExpression encodes one step of a rule.
func nftExpression(name string, attributes ...[]byte) []byte {
	return nftNested(unix.NFTA_LIST_ELEM, nftText(unix.NFTA_EXPR_NAME, name), nftNested(unix.NFTA_EXPR_DATA, attributes...))
}

// nftEach calls f for each attribute until one is malformed, at which nl.ParseRouteAttr would panic, or f returns false.
func nftEach(b []byte, f func(kind uint16, value []byte) bool) {
	for len(b) >= unix.SizeofNlAttr {
		length, kind := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
		if length < unix.SizeofNlAttr || length > len(b) || !f(kind&nftTypeMask, b[unix.SizeofNlAttr:length]) {
			return
		}
		aligned := (length + unix.NLA_ALIGNTO - 1) &^ (unix.NLA_ALIGNTO - 1)
		b = b[min(aligned, len(b)):]
	}
}

// nftValue finds an attribute; nil: there is none.
func nftValue(b []byte, kind uint16) (found []byte) {
	nftEach(b, func(k uint16, value []byte) bool {
		if k == kind {
			found = value
		}
		return found == nil
	})
	return found
}

func nftString(b []byte, kind uint16) string { return unix.ByteSliceToString(nftValue(b, kind)) }

// nftCounted adds up how many packets the counters of a rule have seen.
func nftCounted(rule []byte) (packets uint64) {
	nftEach(nftValue(rule, unix.NFTA_RULE_EXPRESSIONS), func(_ uint16, e []byte) bool {
		if nftString(e, unix.NFTA_EXPR_NAME) == "counter" {
			if n := nftValue(nftValue(e, unix.NFTA_EXPR_DATA), unix.NFTA_COUNTER_PACKETS); len(n) == 8 {
				packets += binary.BigEndian.Uint64(n)
			}
		}
		return true
	})
	return packets
}
