// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/gateway"
	"github.com/pilot-protocol/pilot/node/localapi"
)

// ErrNotInNetwork says that a name or an address is nobody's in the network.
var ErrNotInNetwork = gateway.ErrForeign

// refusal is a failure that programs know by its number, as they would get it from a kernel, and people by its words.
type refusal struct {
	words *localapi.Error
	errno error
}

func (r *refusal) Error() string   { return r.words.Message }
func (r *refusal) Unwrap() []error { return []error{r.words, r.errno} }

// Resolve returns the address that a name means in the network: an agent's, with the zone or without; the zone's own; or
// an address as text. What belongs to nobody is a *net.DNSError where it may be a name of somebody else's, or
// ErrNotInNetwork. A name whose agent may not be reached is syscall.EACCES.
func (n *Node) Resolve(ctx context.Context, host string) (netip.Addr, error) {
	m, err := n.current()
	if err != nil {
		return netip.Addr{}, err
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		if !m.engine.prefix.Contains(addr) || addr.Zone() != "" {
			return netip.Addr{}, fmt.Errorf("%v: %w", addr, ErrNotInNetwork)
		}
		return addr, nil
	}
	name := plainName(host, m.zone)
	if name == m.zone {
		return m.engine.service, nil
	}
	missing := &net.DNSError{Err: "no such agent", Name: host, IsNotFound: true}
	if identity.ValidateName(name) != nil {
		if !strings.Contains(name, ".") {
			return netip.Addr{}, missing
		}
		return netip.Addr{}, &net.DNSError{UnwrapErr: ErrNotInNetwork, Err: ErrNotInNetwork.Error(), Name: host, IsNotFound: true}
	}
	agent, err := n.lookUpSparing(ctx, m, name)
	var e *localapi.Error
	switch errors.As(explain(err), &e); {
	case err == nil:
	case e != nil && e.Code == localapi.CodeNotFound:
		return netip.Addr{}, missing
	case e != nil && e.Code != localapi.CodeUnavailable:
		return netip.Addr{}, &refusal{words: e, errno: syscall.EACCES}
	default:
		missing.Err, missing.UnwrapErr, missing.IsNotFound, missing.IsTemporary = err.Error(), err, false, true
		return netip.Addr{}, missing
	}
	var addr netip.Addr
	err = n.view(func(m *membership) error {
		addr = identity.Address(m.book.network, agent)
		if agent == m.book.self {
			return nil
		}
		if denied := m.book.requireTrust(agent, name, n.now()); denied != nil {
			return &refusal{words: denied, errno: syscall.EACCES}
		}
		return nil
	})
	return addr, err
}

// lookUpSparing is lookUp that asks the coordinator about few unknown names only: programs ask for the same one again and
// again.
func (n *Node) lookUpSparing(ctx context.Context, m *membership, name string) (identity.AgentPublic, error) {
	n.mu.Lock()
	_, disputed := m.book.mismatches[name]
	agent, known := m.book.find(name, m.zone)
	n.mu.Unlock()
	if known && !disputed {
		return agent, nil
	}
	if !disputed && !m.asking.Allow() {
		return agent, &localapi.Error{Code: localapi.CodeUnavailable, Message: "too many unknown names are asked for", Hint: "try again later"}
	}
	return n.lookUp(ctx, name)
}

// current returns the membership that is up.
func (n *Node) current() (m *membership, err error) {
	err = n.view(func(v *membership) error { m = v; return nil })
	return m, err
}

// DialContext connects from the agent's address to host:port in the network, where host is an agent's name or address;
// network is "tcp" or "udp", or one of these with a 6. Errors are a kernel's: ECONNREFUSED, EACCES where a consent is
// missing, EHOSTUNREACH; and those of Resolve. They wrap a *localapi.Error where there is more to say.
func (n *Node) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	protocol, err := protocolOf(network)
	if err != nil {
		return fail(err)
	}
	host, port, err := splitPort(address)
	if err != nil {
		return fail(err)
	}
	m, err := n.current()
	if err != nil {
		return fail(err)
	}
	addr, err := n.Resolve(ctx, host)
	if err != nil {
		return fail(err)
	}
	return m.seat.sockets.Dial(ctx, protocol, netip.AddrPortFrom(addr, port))
}

// Listen listens on a TCP port of the agent's address, written as ":80"; port 0 chooses one. Its owner closes it: in
// userspace mode it ends with the network too.
func (n *Node) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	s, port, err := n.listenOn(network, address, "tcp")
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Err: err}
	}
	return s.ListenTCP(ctx, port)
}

// ListenPacket is Listen for UDP.
func (n *Node) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	s, port, err := n.listenOn(network, address, "udp")
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Err: err}
	}
	return s.ListenUDP(ctx, port)
}

func (n *Node) listenOn(network, address, want string) (sockets, uint16, error) {
	if protocol, err := protocolOf(network); err != nil || protocol != want {
		return nil, 0, net.UnknownNetworkError(network)
	}
	host, port, err := splitPort(address)
	if err != nil {
		return nil, 0, err
	}
	m, err := n.current()
	if err != nil {
		return nil, 0, err
	}
	if host == "" {
		return m.seat.sockets, port, nil
	}
	addr, err := netip.ParseAddr(host)
	own := err == nil && (addr.IsUnspecified() || addr == identity.Address(m.book.network, m.book.self))
	if !own {
		n.mu.Lock()
		own = plainName(host, m.zone) == m.book.certificate.Name
		n.mu.Unlock()
	}
	if !own {
		return nil, 0, &net.AddrError{Err: "is not this agent's address", Addr: host}
	}
	return m.seat.sockets, port, nil
}

// Sockets is how many the node's own stack has, closed ones that still rest among them; 0 with an interface of the kernel's.
func (n *Node) Sockets() (count int) {
	_ = n.view(func(m *membership) error {
		if m.engine.user != nil {
			count = m.engine.user.Sockets()
		}
		return nil
	})
	return count
}

// Settle waits until the other ends have all that was written to connections before they were closed, or ctx ends. With an
// interface of the kernel's that is the kernel's business.
func (n *Node) Settle(ctx context.Context) {
	if m, err := n.current(); err == nil && m.engine.user != nil {
		m.engine.user.Settle(ctx)
	}
}

// Caller says who an address is, as the other end of a connection over the network: an address belongs to one key, and
// what comes from it was sealed by that key's owner. An address that isn't known to be an agent's is NOT_FOUND.
func (n *Node) Caller(addr netip.Addr) (a localapi.Agent, err error) {
	err = n.view(func(m *membership) error {
		agent, ok := m.book.find(addr.WithZone("").String(), m.zone)
		if !ok {
			return &localapi.Error{Code: localapi.CodeNotFound, Message: addr.String() + " is no agent's address"}
		}
		a = n.agent(m, agent)
		return nil
	})
	return a, err
}

func protocolOf(network string) (string, error) {
	switch network {
	case "tcp", "tcp6":
		return "tcp", nil
	case "udp", "udp6":
		return "udp", nil
	}
	return "", net.UnknownNetworkError(network)
}

func splitPort(address string) (host string, port uint16, err error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, err
	}
	p, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return "", 0, &net.AddrError{Err: "invalid port", Addr: address}
	}
	return host, uint16(p), nil
}
