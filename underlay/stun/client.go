// SPDX-License-Identifier: Apache-2.0

package stun

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/stun/v3"
)

// Attributes that the library has no type for.
const (
	attrPadding       = stun.AttrType(0x8026) // not RFC 5780's, which a server must understand: this one it may ignore
	attrOtherAddress  = stun.AttrOtherAddress
	attrChangeRequest = stun.AttrChangeRequest
)

const (
	// requestSize is the length of a request in bytes. Servers of this project answer with no more than they were asked
	// with: an answer for IPv6 with a second address has 68.
	requestSize = 80
	// changePort asks for the answer from the server's other port (RFC 5780, section 7.2).
	changePort = 0x02
)

// ErrNoAnswer says that no answer came. It is wrapped together with the context's error.
var ErrNoAnswer = errors.New("stun: no answer")

// Reply is how a server sees this host.
type Reply struct {
	Server netip.AddrPort // that was asked
	From   netip.AddrPort // where the answer came from
	Mapped netip.AddrPort // where it sees this host
	RTT    time.Duration
	// OtherPort is a second port of the server, for comparison; 0: it has none. The address that a server names beside it does
	// not count: it may be one behind a translator of the server's own, and would let it send questions to anybody.
	OtherPort uint16
}

// Client asks over a socket that is not its own: what comes in there has to be given to Accept. It is safe for concurrent
// use.
type Client struct {
	send func(to netip.AddrPort, datagram []byte) error

	mu      sync.Mutex
	waiting map[id]*question // by each transaction that was sent
}

type id [stun.TransactionIDSize]byte

// Loop sends a request to an address of this host's own, and reports whether it arrives here before ctx ends.
func (c *Client) Loop(ctx context.Context, own netip.AddrPort) bool {
	_, err := c.exchange(ctx, &question{to: own, loop: true})
	return err == nil
}

// question is one request, sent some times under as many transactions, so that each answer has its own time.
type question struct {
	to      netip.AddrPort
	other   bool // the answer shall come from another port
	loop    bool // the request itself shall come back
	answers chan Reply
	sent    map[id]time.Time // guarded by Client.mu
}

// NewClient returns a client that sends its requests with send, which must not keep them.
func NewClient(send func(to netip.AddrPort, datagram []byte) error) *Client {
	return &Client{send: send, waiting: make(map[id]*question)}
}

// The pauses before a request is sent again; the last is repeated. RFC 8489, section 6.2.1, begins with 500 ms, for
// servers that are far; here the answer has to come before people notice.
var pauses = [...]time.Duration{200 * time.Millisecond, 300 * time.Millisecond, 500 * time.Millisecond}

// Ask asks a server how it sees this host, again and again until ctx ends.
func (c *Client) Ask(ctx context.Context, server netip.AddrPort) (Reply, error) {
	return c.exchange(ctx, &question{to: server})
}

// AskOtherPort lets the server answer from its other port. An answer shows that filters let it through.
func (c *Client) AskOtherPort(ctx context.Context, server netip.AddrPort) (Reply, error) {
	return c.exchange(ctx, &question{to: server, other: true})
}

func (c *Client) exchange(ctx context.Context, q *question) (Reply, error) {
	q.answers, q.sent = make(chan Reply, 1), make(map[id]time.Time)
	defer c.forget(q)
	timer := time.NewTimer(0)
	defer timer.Stop()
	var failure error
	for try := 0; ; {
		select {
		case <-timer.C:
			if err := c.transmit(q); err != nil {
				failure = err
			}
			timer.Reset(pauses[min(try, len(pauses)-1)])
			try++
		case r := <-q.answers:
			return r, nil
		case <-ctx.Done():
			if failure != nil {
				return Reply{}, fmt.Errorf("%w: %w", ErrNoAnswer, failure)
			}
			return Reply{}, fmt.Errorf("%w: %w", ErrNoAnswer, ctx.Err())
		}
	}
}

// transmit sends the request under a new transaction.
func (c *Client) transmit(q *question) error {
	m, err := request(q.other)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.waiting[m.TransactionID] = q
	q.sent[m.TransactionID] = time.Now()
	c.mu.Unlock()
	return c.send(q.to, m.Raw)
}

// request makes a binding request, padded.
func request(other bool) (*stun.Message, error) {
	m, err := stun.Build(stun.TransactionID, stun.BindingRequest)
	if err != nil {
		return nil, fmt.Errorf("stun: %w", err)
	}
	if other {
		m.Add(attrChangeRequest, binary.BigEndian.AppendUint32(nil, changePort))
	}
	const head = 4 // of an attribute
	m.Add(attrPadding, make([]byte, requestSize-len(m.Raw)-head))
	return m, nil
}

func (c *Client) forget(q *question) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range q.sent {
		delete(c.waiting, id)
	}
}

// Is reports whether a datagram could be STUN: its first two bits are zero and it has the magic cookie.
func Is(d []byte) bool { return len(d) > 0 && d[0] < 0x40 && stun.IsMessage(d) }

// Accept takes a datagram for which Is holds. An answer that nobody waits for, or from elsewhere than it should be, is dropped.
func (c *Client) Accept(d []byte, from netip.AddrPort) {
	now := time.Now()
	r, transaction, loop, ok := parse(d)
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	q := c.waiting[transaction]
	// A request that came back may have any source: translators write one of this host's there.
	if q == nil || q.loop != loop || !loop && (from.Addr() != q.to.Addr() || (from.Port() != q.to.Port()) != q.other) {
		return
	}
	r.Server, r.From, r.RTT = q.to, from, now.Sub(q.sent[transaction])
	select {
	case q.answers <- r:
	default:
	}
}

// parse reads an answer to a binding request, or a request, of which there is nothing to say.
func parse(d []byte) (r Reply, transaction id, request, ok bool) {
	m := &stun.Message{Raw: d}
	if m.Decode() != nil || m.Type != stun.BindingSuccess && m.Type != stun.BindingRequest {
		return r, transaction, false, false
	}
	if m.Type == stun.BindingRequest {
		return r, m.TransactionID, true, true
	}
	var x stun.XORMappedAddress
	if x.GetFrom(m) != nil {
		var plain stun.MappedAddress // of servers as old as RFC 3489
		if plain.GetFrom(m) != nil {
			return r, transaction, false, false
		}
		x.IP, x.Port = plain.IP, plain.Port
	}
	mapped, valid := address(x.IP, x.Port)
	if !valid {
		return r, transaction, false, false
	}
	r.Mapped = mapped
	var other stun.OtherAddress
	if other.GetFrom(m) == nil {
		r.OtherPort = uint16(other.Port) // the library reads it from two bytes
	}
	return r, m.TransactionID, false, true
}

func address(ip []byte, port int) (netip.AddrPort, bool) {
	a, ok := netip.AddrFromSlice(ip)
	if a = a.Unmap(); !ok || a.IsUnspecified() || a.IsMulticast() || port <= 0 || port > 0xffff {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(a, uint16(port)), true
}
