// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/magicdns"
	"github.com/pilot-protocol/pilot/netstack"
	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/overlay"
	"github.com/pilot-protocol/pilot/platform"
	"github.com/pilot-protocol/pilot/tun"
)

// engine is everything that carries packets and answers names, while the network is up.
type engine struct {
	device   tun.Device
	tunWhy   string          // why there is no interface of the kernel's, where that would have been preferred
	user     *netstack.Stack // the programs' own stack; nil with an interface of the kernel's
	others   *netstack.Stack // that of all agents but the first, with an interface of the kernel's; else nil
	underlay Underlay
	stack    *netstack.Stack
	overlay  *overlay.Overlay
	fence    Fence                  // nil: there is no interface that needs one
	unfenced atomic.Pointer[string] // why there is no fence, though there should be; nil: there is
	names    *magicdns.Server
	dns      platform.DNS           // nil: this host's resolver could not be told
	trouble  atomic.Pointer[string] // why names don't resolve on this host by themselves; nil: they do
	// before are the resolvers that the host had before, nil: not known. They are remembered here because dns may be waiting
	// for programs of the host's when they are needed.
	before  atomic.Pointer[[]netip.AddrPort]
	dnsUDP  net.PacketConn
	dnsTCP  net.Listener
	page    net.Listener
	zone    string
	prefix  netip.Prefix
	service netip.Addr
	apart   bool   // the names are those of a sandbox: other resolvers are asked from outside of it
	socket  string // of the daemon's local API, which nobody may publish
	log     *slog.Logger
	slim    *time.Timer // calls slim once agents have come up, for all of them

	mu    sync.Mutex // guards seats, and what they plan
	seats []*seat    // the first is the daemon's own agent's
}

type engineOptions struct {
	system  System
	network identity.AuthorityPublic
	self    identity.AgentPublic
	zone    string
	tun     string        // localapi.TUNAuto, TUNKernel or TUNUserspace
	gate    magicdns.Gate // may be nil
	log     *slog.Logger
	socket  string // of the daemon's local API
}

// slimAfter is how long after the last one of many agents came up their daemon is made small again: all of them have
// greeted their peers by then.
const slimAfter = 2 * greetTime

// openEngine makes the interface, the sockets and the service stack. Nothing moves before run.
func openEngine(o engineOptions) (opened *engine, err error) {
	prefix := identity.NetworkPrefix(o.network)
	e := &engine{zone: o.zone, prefix: prefix, service: identity.ServiceAddress(prefix), apart: o.gate != nil, socket: o.socket, log: o.log}
	e.slim = time.AfterFunc(slimAfter, func() { slim(o.log) })
	e.slim.Stop()
	defer func() {
		if err != nil {
			e.abandon()
		}
	}()
	if err = e.openDevice(o); err != nil {
		return nil, err
	}
	if e.underlay, err = o.system.OpenUnderlay(); err != nil {
		return nil, fmt.Errorf("open the UDP port: %w", err)
	}
	if err = e.openStack(); err != nil {
		return nil, err
	}
	options := overlay.Options{
		Network: o.network, Device: e.device, Underlay: e.underlay, Stack: e.stack, AES: platform.HasAES(), Log: o.log,
	}
	if e.others != nil {
		options.Hosted = e.others.Device(userspaceName)
	}
	if e.overlay, err = overlay.New(options); err != nil {
		return nil, err
	}
	e.names = magicdns.New(magicdns.Options{Log: o.log, Gate: o.gate})
	if e.user != nil {
		return e, nil // nothing of this host's changes
	}
	if e.dns, err = o.system.OpenDNS(); err != nil {
		e.nameless(err)
		e.dns, err = nil, nil
	}
	e.rememberUpstreams()
	return e, nil
}

// rememberUpstreams asks for the resolvers that the host had before, and reports whether they are others now.
func (e *engine) rememberUpstreams() (changed bool) {
	if e.dns == nil {
		return false
	}
	upstreams := e.dns.Upstreams()
	former := e.before.Swap(&upstreams)
	return former == nil || !slices.Equal(*former, upstreams)
}

// openStack makes the userspace host behind the service address, with its DNS and HTTP ports.
func (e *engine) openStack() (err error) {
	if e.stack, err = netstack.New(netstack.Options{Addresses: []netip.Addr{e.service}, MTU: mtu, Log: e.log}); err != nil {
		return err
	}
	if e.dnsUDP, err = e.stack.ListenUDP(netip.AddrPortFrom(e.service, 53)); err != nil {
		return err
	}
	if e.dnsTCP, err = e.stack.ListenTCP(netip.AddrPortFrom(e.service, 53)); err != nil {
		return err
	}
	e.page, err = e.stack.ListenTCP(netip.AddrPortFrom(e.service, 80))
	return err
}

// setNames says what names mean.
func (e *engine) setNames(p plan) {
	state := magicdns.State{
		Zone: e.zone, Service: e.service, Prefix: e.prefix, Self: p.self, Hosts: p.hosts, Own: []netip.Addr{e.service}, Apart: e.apart,
	}
	for _, h := range p.self {
		state.Own = append(state.Own, h.Addr)
	}
	if upstreams := e.before.Load(); upstreams != nil {
		state.Upstreams = *upstreams
	}
	e.names.Set(state)
}

// announce tells the host's resolver who knows the zone. It comes last: before, nobody would answer. An agent can do without.
func (e *engine) announce() {
	if e.dns == nil {
		return
	}
	if err := e.dns.Set(platform.DNSConfig{
		Interface: e.device.Name(), Server: e.service, Zone: e.zone, Search: []string{e.zone}, Reverse: magicdns.ReverseZones(e.prefix),
	}); err != nil {
		e.nameless(err)
	}
	e.rememberUpstreams() // now without this node itself
}

// nameless notes that this host's resolver could not be told, and why; with nil, that it could.
func (e *engine) nameless(err error) {
	if err == nil {
		e.trouble.Store(nil)
		return
	}
	e.log.Warn("names can't be announced to this host's resolver", "error", err)
	text := fmt.Sprintf("names do not resolve on this host by themselves (%v); ask %s", err, e.service)
	e.trouble.Store(&text)
}

// warnings say what this host has to do without.
func (e *engine) warnings() (list []localapi.Problem) {
	if text := e.trouble.Load(); text != nil {
		list = append(list, localapi.Problem{Code: localapi.CodeInternal, Message: *text})
	}
	if text := e.unfenced.Load(); text != nil {
		list = append(list, localapi.Problem{
			Code: localapi.CodeUnfenced, Message: "who is on a link of this host can send to this agent past the tunnel: " + *text,
			Hint: fmt.Sprintf("pilot wants the kernel's nf_tables (modprobe nf_tables) and CAP_NET_ADMIN to prevent that; else let a firewall drop "+
				"what comes from %s, and what is for this agent, by another interface than %s and lo", e.prefix, e.device.Name()),
		})
	}
	return list
}

// dnsMode says how names reach the daemon.
func (e *engine) dnsMode() string {
	if e.dns == nil {
		return "none"
	}
	return e.dns.Mode()
}

// run carries packets until ctx ends. It closes all that openEngine opened, and leaves the host's resolver as it was.
// changed is called when the resolvers that this host had before are others now.
func (e *engine) run(ctx context.Context, page http.Handler, changed func()) error {
	group, ctx := errgroup.WithContext(ctx)
	// The overlay closes it, when it has taken leave of its peers.
	group.Go(func() error { return e.underlay.Run(context.WithoutCancel(ctx)) })
	group.Go(func() error { return e.overlay.Run(ctx) })
	group.Go(func() error { return e.dispatch(ctx) })
	group.Go(func() error { return e.names.Serve(ctx, e.dnsUDP, e.dnsTCP) })
	group.Go(func() error { return e.servePage(ctx, page) })
	group.Go(func() error { return e.watchDNS(ctx, changed) })
	group.Go(func() error { return e.watchFence(ctx) })
	err := group.Wait()
	err = errors.Join(err, e.closeFence())
	if e.dns != nil {
		if restore := e.dns.Restore(); restore != nil {
			e.log.Error("the host's DNS settings could not be restored", "error", restore)
			err = errors.Join(err, restore)
		}
	}
	e.slim.Stop()
	err = errors.Join(err, e.guests().Close())
	return errors.Join(err, e.stack.Close())
}

// dnsInterval is how often the host's DNS settings are looked at: a DHCP client may write them anew at any time.
const dnsInterval = 3 * time.Second

// watchDNS keeps the host's resolver asking this node.
func (e *engine) watchDNS(ctx context.Context, changed func()) error {
	if e.dns == nil {
		return nil
	}
	t := time.NewTicker(dnsInterval)
	defer t.Stop()
	failing := e.trouble.Load() != nil
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		again, err := e.dns.Refresh()
		if (err != nil) != failing {
			e.nameless(err)
		}
		failing = err != nil
		others := e.rememberUpstreams()
		if again {
			e.log.Info("somebody changed the host's DNS settings; they are set again", "upstreams", *e.before.Load())
		}
		if again || others {
			changed()
		}
	}
}

// servePage answers http://pilot.internal/.
func (e *engine) servePage(ctx context.Context, page http.Handler) error {
	srv := &http.Server{
		Handler: page, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 30 * time.Second, WriteTimeout: 10 * time.Second,
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(e.log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(e.page); !errors.Is(err, http.ErrServerClosed) && ctx.Err() == nil {
		return fmt.Errorf("serve the page: %w", err)
	}
	return nil
}

// abandon closes what was opened before run.
func (e *engine) abandon() {
	for _, c := range []interface{ Close() error }{e.page, e.dnsTCP, e.dnsUDP} {
		if c != nil {
			c.Close()
		}
	}
	if e.stack != nil {
		e.stack.Close()
	}
	if e.underlay != nil {
		e.underlay.Close()
	}
	if e.device != nil {
		e.device.Close()
	}
	if err := e.closeFence(); err != nil {
		e.log.Error("the fence of the interface stays", "error", err)
	}
	if stack := e.guests(); stack != nil {
		stack.Close()
	}
	if e.dns != nil {
		if err := e.dns.Restore(); err != nil {
			e.log.Error("the host's DNS settings could not be restored", "error", err)
		}
	}
}
