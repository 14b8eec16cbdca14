// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/pilot-protocol/pilot/node"
	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/platform"
	"github.com/pilot-protocol/pilot/tun"
)

const (
	// networkMTU is the network's, as everywhere else.
	networkMTU = node.MTU
	// linkMTU is the interface's: what goes to the gateway stays on this host, and takes the fewest steps in the longest
	// packets.
	linkMTU = 65520
	// stageLimit is how long the stage may take to do one thing.
	stageLimit = 15 * time.Second
)

// outsideAddress is what the sandbox speaks IPv4 from (RFC 6598).
func outsideAddress() netip.Addr { return netip.AddrFrom4([4]byte{100, 64, 0, 2}) }

// stage is the other end of a sandbox's control socket while the stage is there.
type stage struct {
	*platform.Sandbox
	mu sync.Mutex // one order at a time
}

// ask gives an order and waits for the answer.
func (s *stage) ask(o order) (answer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text, err := json.Marshal(o)
	if err != nil {
		return answer{}, err
	}
	if err := s.Send(text, nil); err != nil {
		return answer{}, fmt.Errorf("the sandbox is gone: %w", err)
	}
	a, _, err := s.hear()
	return a, err
}

// hear waits for an answer.
func (s *stage) hear() (a answer, f *os.File, err error) {
	silent := time.AfterFunc(stageLimit, s.Kill)
	defer silent.Stop()
	message, f, err := s.Receive()
	if err == nil {
		err = json.Unmarshal(message, &a)
	}
	if errors.Is(err, net.ErrClosed) {
		err = errors.New("the sandbox ended before it was there")
	}
	if err == nil && a.Error != nil {
		err = a.Error
	}
	return a, f, err
}

// system is the host as the sandbox's node uses it: the sandbox in the place of what a program sees, the host itself for
// the ways to others.
type system struct {
	node.System
	stage    *stage
	file     *os.File // of the interface
	outside  tun.Device
	egress   *egress
	splitter splitter
	hostname string
	hide     []string

	mu        sync.Mutex
	shown     platform.DNSConfig // guarded by mu
	upstreams []netip.AddrPort   // guarded by mu
	warnings  []string           // guarded by mu
}

// OpenTUN returns the sandbox's interface, as often as the network comes up.
func (s *system) OpenTUN() (tun.Device, error) {
	d, err := tun.FromFile(s.file, interfaceName, linkMTU, tun.OffloadChecksum|tun.OffloadTCP)
	if err != nil {
		return nil, err
	}
	inner, ok := d.(device)
	if !ok {
		return nil, errors.Join(platform.ErrUnsupported, d.Close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.splitter.device = inner
	return &s.splitter, nil
}

// Configure lets the stage set the interface up. Nothing else leads into the sandbox, so that it has no need of a fence.
func (s *system) Configure(i platform.Interface) (node.Fence, error) {
	s.splitter.Set(i.Route)
	s.egress.setNetwork(i.Route)
	_, err := s.stage.ask(order{Link: &platform.SandboxLink{Interface: i, LinkMTU: linkMTU, Outside: outsideAddress()}})
	return nil, err
}

// OpenDNS returns the sandbox's own resolver settings.
func (s *system) OpenDNS() (platform.DNS, error) {
	s.look()
	return dns{s}, nil
}

// RestoreDNS does nothing: the host's settings are not touched.
func (s *system) RestoreDNS() error { return nil }

// warned returns what the sandbox has to do without.
func (s *system) warned() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.warnings
}

// look reads which resolvers the host has now.
func (s *system) look() {
	found, err := platform.Resolvers()
	if err != nil {
		return // those of before are the best guess
	}
	s.mu.Lock()
	s.upstreams = found
	s.mu.Unlock()
}

// dns is a sandbox's resolver: it knows the node alone.
type dns struct{ s *system }

// Set lets the stage write the files of the sandbox.
func (d dns) Set(c platform.DNSConfig) error {
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	if d.s.shown.Server == c.Server && slices.Equal(d.s.shown.Search, c.Search) {
		return nil
	}
	a, err := d.s.stage.ask(order{View: &platform.SandboxView{
		Hostname: d.s.hostname, Resolv: platform.ResolvConf(c.Server, c.Search), Hide: d.s.hide,
	}})
	if err == nil {
		d.s.shown, d.s.warnings = c, a.Warnings
	}
	return err
}

// Upstreams are those of the host, which the node asks.
func (d dns) Upstreams() []netip.AddrPort {
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	return slices.Clone(d.s.upstreams)
}

// Refresh looks whether the host has others now. Nobody else changes the sandbox's.
func (d dns) Refresh() (bool, error) {
	d.s.look()
	return false, nil
}

// Restore does nothing: the files end with the sandbox.
func (dns) Restore() error { return nil }

// Mode says where names are known.
func (dns) Mode() string { return "sandbox" }

// explain gives errors of starting a sandbox their codes.
func explain(err error) error {
	switch {
	case errors.Is(err, platform.ErrUnsupported):
		return &localapi.Error{Code: localapi.CodeUnsupported, Message: "pilot run needs Linux", Hint: "on this system use: pilot up"}
	case errors.Is(err, platform.ErrNamespaces):
		return &localapi.Error{Code: localapi.CodeNoNamespace, Message: err.Error(), Hint: platform.WhyNoNamespaces()}
	}
	return node.Explain(err)
}
