// SPDX-License-Identifier: Apache-2.0

// Package inspect looks at a host for what could keep an overlay network from working on it. It changes nothing, makes
// nothing and judges nothing: package doctor does that. What this user, or this system, doesn't let it see is an error
// in the place of the answer.
package inspect

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/pilot-protocol/pilot/platform"
)

// ErrNotHere says that this system has no such thing to look at, or that this program doesn't know how.
var ErrNotHere = errors.New("not looked at on this system")

// Seen is what one look found, or why there was nothing to be seen.
type Seen[T any] struct {
	Value T
	Err   error
}

func seen[T any](v T, err error) Seen[T] { return Seen[T]{Value: v, Err: err} }

// Question says what to look for. Without a network that is up only the first three fields are known.
type Question struct {
	StateDir string
	Socket   string
	System   bool // the state folder is the one of the system's service
	// Of the network that is up:
	Interface string
	Prefix    netip.Prefix
	Address   netip.Addr // this agent's
	Server    netip.Addr // the overlay's own DNS
	Name      string     // this agent's full name
}

// Host is what was found.
type Host struct {
	OS        string // as runtime.GOOS
	Root      bool   // this user sees everything
	Container string // what kind of container this is; empty: none that can be told
	TUN       Seen[TUN]
	Service   Seen[Unit]
	Group     Seen[Group]
	State     Seen[Folder]
	Clock     Seen[Clock]
	IPv6      Seen[IPv6]
	Links     Seen[[]Link]
	Routes    Seen[Routes]
	Resolver  Seen[Resolver]
	Names     Seen[Names]
	Firewall  Seen[[]Chain]
}

// TUN is the driver for virtual interfaces.
type TUN struct {
	Path   string
	Exists bool
	Open   error // what opening it said; nil: it can be used
	Admin  bool  // this process may configure interfaces
}

// Unit is the system's service, as its manager sees it.
type Unit struct {
	Manager   bool // there is a service manager that we know
	Installed bool
	Enabled   bool
	Active    string // active, activating, failed, inactive…
	Result    string // why it failed
	Restarts  uint32 // since it was started
}

// Group is who may control the daemon.
type Group struct {
	Name    string
	Exists  bool
	Member  bool // this process is in it
	Listed  bool // this user is, but may not have logged in since
	Windows bool // there is no group: the pipe's access list decides
}

// Folder is the state folder.
type Folder struct {
	Path     string
	Exists   bool
	Problem  error    // of platform.CheckDir
	ReadOnly bool     // its file system is
	Free     uint64   // bytes for users that are not root
	Files    bool     // its files could be looked at
	Loose    []string // files with secrets that others may read
	Future   string   // a file that was written later than now
	Ahead    time.Duration
}

// Clock is this host's.
type Clock struct {
	Synchronized bool // the kernel takes it for right
}

// IPv6 is about the protocol on this host.
type IPv6 struct {
	Missing  bool     // the kernel has none
	Disabled []string // interfaces, or "all" and "default", for which it is switched off
}

// Link is an interface.
type Link struct {
	Name      string
	Kind      string // the kernel's word for it: tun, wireguard, veth…; empty: not known
	Up        bool
	Addresses []netip.Prefix
}

// Routes is how the kernel sends packets for the overlay.
type Routes struct {
	Chosen  string  // the interface that it chooses for an address of the overlay
	Others  []Route // routes of other interfaces that lie in the overlay's prefix, or contain it
	Rules   []string
	Ways    []string // interfaces with a default route for IPv4
	Strict  []string // those of them whose reverse path filter is strict
	Failure error    // there is no route at all
}

// Route is one of another interface's.
type Route struct {
	Destination netip.Prefix
	Interface   string
	Table       int
}

// Resolver is the system's.
type Resolver struct {
	File      platform.ResolverFile
	Symlink   string
	Bound     bool // something is mounted on the file
	Immutable bool // chattr +i
	Unwritten bool // neither the file nor its folder can be written
	Managers  []string
	Claims    []Claim // of interfaces that want all names, or ours
	Choice    platform.Decision
}

// Claim is a domain that systemd-resolved routes to an interface.
type Claim struct {
	Interface string
	Domain    string // "." stands for all names
}

// Names is what a question for this agent's own name came to.
type Names struct {
	System    []netip.Addr
	SystemErr error
	Direct    []netip.Addr // asked of the overlay's DNS itself
	DirectErr error
}

// Chain is one of the firewall's that packets from or to this host pass.
type Chain struct {
	Family, Table, Name string
	Hook                string // input or output
	Drops               bool   // what no rule takes is dropped
	Refusals            []Refusal
	Accepts             []Match // unconditional but for these
}

// Refusal is a rule that drops or rejects what it matches.
type Refusal struct{ Match }

// Match is what a rule asks for, as far as it is understood.
type Match struct {
	Interface string       // empty: any
	Prefix    netip.Prefix // zero: any
	UDPPort   uint16       // 0: not asked for
	Other     bool         // it asks for more
}

// nameLimit bounds one question for a name.
const nameLimit = 3 * time.Second

// Look looks at everything. It takes some seconds at most.
func Look(ctx context.Context, q Question) Host {
	h := look(ctx, q)
	if q.Name != "" {
		h.Names = seen(names(ctx, q), nil)
	} else {
		h.Names.Err = errNoNetwork
		h.Routes.Err = errors.Join(h.Routes.Err, errNoNetwork)
	}
	return h
}

var errNoNetwork = errors.New("no network is up")
