// SPDX-License-Identifier: Apache-2.0

// Package portmap asks the gateway to forward a UDP port to this host: by PCP (RFC 6887), NAT-PMP (RFC 6886) or UPnP's
// Internet Gateway Device. All of it is an attempt: where it fails nothing else waits for it.
package portmap

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

// Protocols.
const (
	PCP    = "pcp"
	NATPMP = "nat-pmp"
	UPnP   = "upnp"
)

const (
	// lease is asked for. RFC 6886, section 3.3, recommends no more.
	lease = 2 * time.Hour
	// minRenew bounds how often a gateway with short leases is asked.
	minRenew = time.Minute
	// permanentRenew is when a mapping without an end is looked at.
	permanentRenew = time.Hour
	// firstRetry and lastRetry are the pauses after no gateway granted anything, each longer than the one before: the first is
	// for a word that was lost, the others for a gateway that learns.
	firstRetry = time.Minute
	longer     = 4
	lastRetry  = time.Hour
	// askLimit bounds one attempt with one protocol, releaseLimit the end.
	askLimit     = 2 * time.Second
	searchLimit  = 4 * time.Second
	releaseLimit = time.Second
	// controlPort is PCP's and NAT-PMP's.
	controlPort = 5351
)

var errRefused = errors.New("the gateway refused")

// Mapping is a port that the gateway forwards.
type Mapping struct {
	Protocol string         // empty: there is none
	External netip.AddrPort // where others reach the port
	Expires  time.Time      // zero: never
}

// Options of New.
type Options struct {
	Port    uint16                     // UDP
	Gateway func() (netip.Addr, error) // the router for IPv4
	Changed func()                     // Mapping changed; must not wait
	Log     *slog.Logger
}

// Mapper keeps a port mapped.
type Mapper struct {
	options Options
	log     *slog.Logger
	kick    chan struct{} // one slot
	current atomic.Pointer[Mapping]
	nonce   [12]byte // of this run's PCP mapping: only who knows it can change it
	port    uint16   // the gateway's for PCP and NAT-PMP
	upnp    upnp
}

// protocol asks a gateway in one way.
type protocol interface {
	// request asks for a mapping, and prefers the external port of the last one; a lifetime of 0 gives it back.
	request(ctx context.Context, gateway netip.Addr, last Mapping, lifetime time.Duration) (Mapping, error)
}

// New returns a Mapper that does nothing until it is run.
func New(o Options) *Mapper {
	m := &Mapper{options: o, log: o.Log, kick: make(chan struct{}, 1), port: controlPort}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	if o.Changed == nil {
		m.options.Changed = func() {}
	}
	rand.Read(m.nonce[:])
	m.upnp = upnp{port: o.Port, search: search}
	m.current.Store(&Mapping{})
	return m
}

// Mapping returns what is mapped now.
func (m *Mapper) Mapping() Mapping { return *m.current.Load() }

// Refresh says that the host moved: the gateway may be another one.
func (m *Mapper) Refresh() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// Run keeps the port mapped until ctx ends, and gives the mapping back then.
func (m *Mapper) Run(ctx context.Context) {
	retry := firstRetry
	var held held
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			m.release(ctx, held)
			return
		case <-m.kick:
			retry = firstRetry
		case <-timer.C:
		}
		next := m.acquire(ctx, held)
		if ctx.Err() != nil {
			continue
		}
		if next.by == nil {
			if held.by != nil {
				m.release(ctx, held)
			}
			timer.Reset(retry)
			retry = min(longer*retry, lastRetry)
		} else {
			timer.Reset(next.renewAfter(time.Now()))
			retry = firstRetry
		}
		held = next
		m.set(held.Mapping)
	}
}

// held is a mapping, and what is needed to renew it.
type held struct {
	Mapping
	by      protocol
	gateway netip.Addr
}

// renewAfter is half of the time that is left (RFC 6886, section 3.3).
func (h *held) renewAfter(now time.Time) time.Duration {
	if h.Expires.IsZero() {
		return permanentRenew
	}
	return max(h.Expires.Sub(now)/2, minRenew)
}

func (m *Mapper) set(next Mapping) {
	old := m.current.Swap(&next)
	if old.External != next.External || old.Protocol != next.Protocol {
		m.log.Info("the gateway's forwarding changed", "protocol", next.Protocol, "external", next.External)
		m.options.Changed()
	}
}

// acquire renews what is held, or asks anew in every way. The result is zero if the gateway grants nothing.
func (m *Mapper) acquire(ctx context.Context, old held) held {
	gateway, err := m.options.Gateway()
	if err != nil {
		m.log.Debug("no port is mapped", "error", err)
		return held{}
	}
	ways := []protocol{&pcp{m}, &natpmp{m}, &m.upnp}
	if old.by != nil && old.gateway == gateway {
		ways = append([]protocol{old.by}, ways...)
	}
	for _, by := range ways {
		got, err := by.request(ctx, gateway, old.Mapping, lease)
		if err == nil && usable(got.External) {
			return held{got, by, gateway}
		}
		m.log.Debug("no port is mapped", "gateway", gateway, "error", err)
		if ctx.Err() != nil {
			break
		}
	}
	return held{}
}

// usable reports whether somebody could reach this host there. A private address may do, for those behind the same outer
// translator.
func usable(a netip.AddrPort) bool {
	ip := a.Addr()
	return ip.IsValid() && a.Port() != 0 && !ip.IsUnspecified() && !ip.IsLoopback() && !ip.IsMulticast() && !ip.IsLinkLocalUnicast()
}

// release gives a mapping back, as well as it can.
func (m *Mapper) release(ctx context.Context, h held) {
	if h.by == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseLimit)
	defer cancel()
	if _, err := h.by.request(ctx, h.gateway, h.Mapping, 0); err != nil {
		m.log.Debug("the mapping could not be given back", "error", err)
	}
}

// localFor returns the address that this host has towards a gateway.
func localFor(gateway netip.Addr, port uint16) (netip.Addr, error) {
	c, err := net.Dial("udp4", netip.AddrPortFrom(gateway, port).String()) // sends nothing
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	at, _ := c.LocalAddr().(*net.UDPAddr)
	return at.AddrPort().Addr().Unmap(), nil
}
