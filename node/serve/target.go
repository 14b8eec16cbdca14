// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/pilot-protocol/pilot/netstack/target"
	"github.com/pilot-protocol/pilot/node/localapi"
)

// Target is what a published port leads to: a Unix socket or an address. Names are not looked up, but for localhost: what
// they mean could change after it was looked at.
type Target struct {
	Unix string
	Addr netip.AddrPort
}

// Publisher is who published a port.
type Publisher struct {
	// Full says that it was root or the daemon's own user.
	Full bool
	UID  uint32
}

// unixPrefix begins a target that is a Unix socket.
const unixPrefix = "unix:"

// maxUnixPath is how many bytes the path of a Unix socket may have on all systems.
const maxUnixPath = 103

// ParseTarget reads "host:port", "port" or "unix:/path"; nothing means the given port. A host that is left out, or is
// localhost, is 127.0.0.1.
func ParseTarget(text string, port uint16) (Target, error) {
	bad := &localapi.Error{Code: localapi.CodeUsage, Message: fmt.Sprintf("%q is no target", text),
		Hint: "targets are a port, ADDRESS:PORT, localhost:PORT or unix:/PATH; names are not looked up"}
	if text == "" {
		text = strconv.Itoa(int(port))
	}
	if path, ok := strings.CutPrefix(text, unixPrefix); ok {
		if !filepath.IsAbs(path) || filepath.Clean(path) != path || strings.ContainsRune(path, 0) || len(path) > maxUnixPath {
			bad.Hint = fmt.Sprintf("the path of a Unix socket is absolute, without . and .., and has up to %d bytes", maxUnixPath)
			return Target{}, bad
		}
		return Target{Unix: path}, nil
	}
	host, number := "", text
	if strings.Contains(text, ":") {
		var err error
		if host, number, err = net.SplitHostPort(text); err != nil {
			return Target{}, bad
		}
	}
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n == 0 {
		return Target{}, bad
	}
	addr := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if host != "" && !strings.EqualFold(host, "localhost") {
		if addr, err = netip.ParseAddr(host); err != nil || addr.Zone() != "" {
			return Target{}, bad
		}
	}
	return Target{Addr: netip.AddrPortFrom(addr.Unmap(), uint16(n))}, nil
}

// String is the inverse of ParseTarget.
func (t Target) String() string {
	if t.Unix != "" {
		return unixPrefix + t.Unix
	}
	return t.Addr.String()
}

// Check says why a target may not be published; nil: it may. The rule is that nobody gets by the daemon what they could not
// get by themselves:
//
//   - Addresses that no rule can allow (metadata services, links, multicast) and those of the network itself are refused
//     to everybody.
//   - A port of a loopback address may be published by whoever may use the local API: any program of this host could
//     connect to it, and pass it on.
//   - Other hosts' addresses may be published by root and by the daemon's own user.
//   - So may Unix sockets. Somebody else may publish one on which a program of their own listens. That is looked at when
//     it is connected to, see dial: permissions of a path would tell less, since who is at the other end would see the
//     daemon's user and not theirs.
func (t Target) Check(by Publisher, network netip.Prefix) error {
	if t.Unix != "" {
		if runtime.GOOS == "windows" {
			return &localapi.Error{Code: localapi.CodeUnsupported, Message: "Unix sockets can't be published on Windows", Hint: "let the program listen on a port of 127.0.0.1"}
		}
		return nil
	}
	addr := t.Addr.Addr()
	forbidden := &localapi.Error{Code: localapi.CodeForbidden, Message: fmt.Sprintf("%s may not be published: it is %s", t, target.ClassOf(addr)),
		Hint: "publish a port of this host: pilot serve PORT"}
	switch class := target.ClassOf(addr); {
	case network.Contains(addr):
		forbidden.Message = fmt.Sprintf("%s may not be published: it is an agent's address", t)
		return forbidden
	case class == target.Loopback && addr.IsLoopback():
		return nil
	case class.Never():
		return forbidden
	case !by.Full:
		forbidden.Message = fmt.Sprintf("only root and the daemon's own user may publish %s: it is not on this host's loopback", t)
		return forbidden
	}
	return nil
}

// errNotYours is what a publisher meets who names a Unix socket of somebody else's, or none.
func errNotYours(t Target) error {
	return &localapi.Error{Code: localapi.CodeForbidden, Message: "no program of yours listens on " + t.String(),
		Hint: "other Unix sockets may be published by root and by the daemon's own user only"}
}

// dial connects to a target. Who listens on a Unix socket is looked at before a byte is sent.
func (s *Server) dial(ctx context.Context, t Target, by Publisher) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	if t.Unix == "" {
		return s.o.Dial(ctx, "tcp", t.Addr.String())
	}
	if err := s.checkPath(t); err != nil {
		return nil, err
	}
	conn, err := s.o.Dial(ctx, "unix", t.Unix)
	if err != nil {
		return nil, err
	}
	if err := s.checkPeer(conn, t, by); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// checkPath keeps those who may publish everything from giving their peers the daemon itself.
func (s *Server) checkPath(t Target) error {
	here, err := os.Stat(t.Unix)
	if err != nil {
		return err
	}
	if own, err := os.Stat(s.o.Socket); err == nil && os.SameFile(here, own) {
		return &localapi.Error{Code: localapi.CodeForbidden, Message: "the daemon's own socket may not be published"}
	}
	return nil
}

func (s *Server) checkPeer(conn net.Conn, t Target, by Publisher) error {
	peer, err := s.o.Peer(conn)
	switch {
	case err != nil:
		return err
	case !by.Full && (!peer.Known || peer.UID != by.UID):
		return errNotYours(t)
	}
	return nil
}

// Admit decides whether somebody may publish a port: by [Target.Check], and for a Unix socket of theirs by connecting to it.
func (s *Server) Admit(ctx context.Context, p Port) error {
	if err := p.Target.Check(p.Publisher, s.o.Prefix); err != nil {
		return err
	}
	if p.Target.Unix == "" {
		return nil
	}
	if p.Protocol == localapi.ServeUDP {
		return &localapi.Error{Code: localapi.CodeUsage, Message: "a UDP port can't lead to a Unix socket", Hint: "targets of udp are ADDRESS:PORT"}
	}
	conn, err := s.dial(ctx, p.Target, p.Publisher)
	if err == nil {
		conn.Close()
		return nil
	}
	var own *localapi.Error
	switch {
	case errors.As(err, &own):
		return own
	case p.Publisher.Full:
		return nil // the program may come later
	}
	return errNotYours(p.Target) // and no more, so that nobody learns what files there are
}
