// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
)

var (
	// ErrDNSUnavailable says that this system's resolver can't be told anything, for instance as its file is read-only.
	ErrDNSUnavailable = errors.New("the system's DNS settings can't be changed")
	// ErrDNSRecord says that the note of what was changed is damaged, or of a newer version. It and the settings are left
	// as they are.
	ErrDNSRecord = errors.New("damaged record of DNS changes")
	// ErrDNSConfig says that a configuration isn't one.
	ErrDNSConfig = errors.New("invalid DNS configuration")
)

// The names of the ways to tell the system, as DNS.Mode and Decision.Mode give them.
const (
	ModeResolved   = "systemd-resolved"
	ModeResolvconf = "resolvconf"
	ModeFile       = "file"
	ModeNone       = "none"
)

// DNSConfig is what the system's resolver should ask the overlay's DNS about.
type DNSConfig struct {
	Interface string     // through which the server is reached
	Server    netip.Addr // the overlay's own DNS, on port 53
	Zone      string     // e.g. pilot.internal
	Search    []string   // domains that complete a bare name, first ours
	Reverse   []string   // zones below ip6.arpa
}

// DNS is the system's resolver. Its methods are safe for concurrent use.
type DNS interface {
	// Set makes the system ask c.Server, and remembers in the state folder how to undo that. Doing it again with the same
	// configuration changes nothing.
	Set(c DNSConfig) error
	// Upstreams are the resolvers that the system had before Set, in order, without our own.
	Upstreams() []netip.AddrPort
	// Refresh looks whether somebody else, a DHCP client say, has changed the settings since; if so, it takes the new
	// resolvers as Upstreams, sets ours again, and reports true. It is cheap, and meant to be called every few seconds.
	Refresh() (changed bool, err error)
	// Restore undoes Set: exactly, unless somebody else has replaced our settings since, in which case theirs stay.
	Restore() error
	// Mode is the way in use, one of the Mode constants or the name of the system's own.
	Mode() string
}

// Options are what OpenDNS needs.
type Options struct {
	Log      *slog.Logger // nil: nothing is logged
	StateDir string       // where changes are remembered until they are undone
	Root     string       // folder that stands for the file system's root; empty: the real one
	// Guard is a command that waits for the end of its standard input and then, unless it has read anything, undoes what
	// is remembered in StateDir. It runs while files are changed that would outlive this process. Empty: none.
	Guard []string
}

func (o Options) logger() *slog.Logger {
	if o.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Log
}

func (c DNSConfig) validate() error {
	if c.Interface == "" || strings.ContainsAny(c.Interface, "/ \t\n'\"") {
		return fmt.Errorf("%w: interface %q", ErrDNSConfig, c.Interface)
	}
	if !c.Server.IsValid() || c.Server.IsUnspecified() || c.Server.IsMulticast() {
		return fmt.Errorf("%w: server %v", ErrDNSConfig, c.Server)
	}
	for _, d := range c.domains() {
		if !validDomain(d) {
			return fmt.Errorf("%w: domain %q", ErrDNSConfig, d)
		}
	}
	return nil
}

// domains are all names that occur, the zone first.
func (c DNSConfig) domains() []string {
	return append(append([]string{c.Zone}, c.Search...), c.Reverse...)
}

// validDomain accepts host names only. They end up in files and command lines of the system's, so nothing else may.
func validDomain(d string) bool {
	if d == "" || len(d) > 253 {
		return false
	}
	for label := range strings.SplitSeq(d, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
				return false
			}
		}
	}
	return true
}

func equalConfig(a, b DNSConfig) bool {
	return a.Interface == b.Interface && a.Server == b.Server && a.Zone == b.Zone &&
		slices.Equal(a.Search, b.Search) && slices.Equal(a.Reverse, b.Reverse)
}

// upstreams are the servers as addresses with the DNS port, each once, without our own.
func upstreams(servers []netip.Addr, own netip.Addr) []netip.AddrPort {
	var out []netip.AddrPort
	for _, s := range servers {
		p := netip.AddrPortFrom(s.Unmap(), 53)
		if s.IsValid() && !s.IsUnspecified() && s != own && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}
