// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
)

const (
	defaultConnect = 30 * time.Second
	maxConnect     = 10 * time.Minute
)

// Connect connects a program of this host to another agent, from this one's address.
func (n *Node) Connect(ctx context.Context, r localapi.ConnectRequest) (net.Conn, error) {
	switch r.Protocol {
	case "":
		r.Protocol = localapi.ServeTCP
	case localapi.ServeTCP, localapi.ServeUDP:
	default:
		return nil, errUsage(fmt.Sprintf("%q is no protocol to connect by", r.Protocol), "protocols are tcp and udp")
	}
	if r.Port == 0 || r.Host == "" {
		return nil, errUsage("a host and a port from 1 to 65535 are needed", "")
	}
	if r.Timeout <= 0 {
		r.Timeout = defaultConnect
	}
	ctx, cancel := context.WithTimeout(ctx, min(r.Timeout, maxConnect))
	defer cancel()
	conn, err := n.DialContext(ctx, r.Protocol, net.JoinHostPort(r.Host, strconv.Itoa(int(r.Port))))
	if err != nil {
		return nil, n.explainConnect(ctx, r, err)
	}
	return conn, nil
}

// explainConnect says in words why there is no connection.
func (n *Node) explainConnect(ctx context.Context, r localapi.ConnectRequest, err error) error {
	var own *localapi.Error
	var name *net.DNSError
	var timeout net.Error
	to := fmt.Sprintf("port %d of %s", r.Port, r.Host)
	switch {
	case errors.As(err, &own):
		return own
	case errors.Is(err, ErrNotInNetwork):
		return &localapi.Error{Code: localapi.CodeNotFound, Message: r.Host + " is not a name or an address in the network",
			Hint: "names are those of agents: pilot agents"}
	case errors.As(err, &name) && name.IsNotFound:
		return &localapi.Error{Code: localapi.CodeNotFound, Message: "there is no agent " + r.Host, Hint: "see: pilot agents"}
	case errors.As(err, &name):
		return &localapi.Error{Code: localapi.CodeUnavailable, Message: r.Host + " can't be looked up: " + name.Err, Hint: "see: pilot status"}
	case errors.Is(err, syscall.ECONNREFUSED):
		return &localapi.Error{Code: localapi.CodeRefused, Message: "nothing listens on " + to, Hint: "is the program there running, and on the agent's address? See pilot serve"}
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return n.explainDenied(ctx, r, to)
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return &localapi.Error{Code: localapi.CodeOffline, Message: r.Host + " does not answer", Hint: "is its node up? pilot status shows when it was last seen"}
	case errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return &localapi.Error{Code: localapi.CodeTimeout, Message: fmt.Sprintf("%s did not answer within %s", to, r.Timeout), Hint: "pilot ping " + r.Host + " tests the tunnel alone"}
	case errors.Is(err, context.Canceled):
		return err
	}
	return &localapi.Error{Code: localapi.CodeInternal, Message: fmt.Sprintf("no connection to %s: %v", to, err), Hint: "the daemon's log may say more"}
}

// explainDenied says which consent is missing, or that there is one which doesn't cover the port.
func (n *Node) explainDenied(ctx context.Context, r localapi.ConnectRequest, to string) error {
	denied := &localapi.Error{Code: localapi.CodeNotTrusted, Message: "the consents of the two agents don't cover " + to, Hint: "see: pilot trust ls"}
	agent, err := n.lookUp(ctx, r.Host)
	if err != nil {
		return denied
	}
	_ = n.view(func(m *membership) error {
		p := m.book.peers[agent]
		if p == nil {
			return nil
		}
		if missing := m.book.requireTrust(agent, p.certificate.Name, n.now()); missing != nil {
			denied = missing
		} else {
			denied.Message = p.certificate.Name + " does not consent to connections to its port " + strconv.Itoa(int(r.Port))
			denied.Hint = "there: pilot trust " + m.book.certificate.Name + " --ports …; what it consents to is shown by: pilot trust ls"
		}
		return nil
	})
	return denied
}
