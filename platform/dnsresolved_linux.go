// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	resolvedName    = "org.freedesktop.resolve1"
	resolvedPath    = dbus.ObjectPath("/org/freedesktop/resolve1")
	resolvedManager = resolvedName + ".Manager"
	busTimeout      = 5 * time.Second
)

// resolvedDNS tells systemd-resolved which domains our link answers for (org.freedesktop.resolve1(5)). The settings are
// the link's, and vanish with it. While something is set a connection to the bus stays open, for a look every few seconds; one
// that is lost is made anew.
type resolvedDNS struct {
	stateDir string
	log      *slog.Logger

	mu     sync.Mutex // guards what follows
	config *DNSConfig // nil: nothing is set
	// touched is the interface for which a Set was tried, be it in vain; empty: none.
	touched string
	conn    *dbus.Conn // nil: none is kept
	// seen is what Refresh has read, for the Upstreams that follows it; nil: that reads by itself.
	seen []resolvedServer
}

// resolvedAddress and resolvedDomain are the D-Bus structures (iay) and (sb).
type resolvedAddress struct {
	Family  int32
	Address []byte
}

type resolvedDomain struct {
	Name        string
	RoutingOnly bool
}

// resolvedServer is one entry of the property DNS: (iiay), interface 0 being the system's own.
type resolvedServer struct {
	Index   int32
	Family  int32
	Address []byte
}

func address(a netip.Addr) resolvedAddress {
	if a.Is4() {
		return resolvedAddress{Family: 2, Address: a.AsSlice()} // AF_INET
	}
	return resolvedAddress{Family: 10, Address: a.AsSlice()} // AF_INET6
}

// resolvedDomains lists what is routed to our link: search domains complete bare names too, the others only route.
func resolvedDomains(c DNSConfig) []resolvedDomain {
	var out []resolvedDomain
	for _, s := range c.Search {
		out = append(out, resolvedDomain{s, false})
	}
	for _, z := range append([]string{c.Zone}, c.Reverse...) {
		if !slices.Contains(c.Search, z) {
			out = append(out, resolvedDomain{z, true})
		}
	}
	return out
}

func (d *resolvedDNS) Mode() string { return ModeResolved }

// onBus calls f with systemd-resolved's object, by a connection of its own.
func onBus(f func(ctx context.Context, o dbus.BusObject) error) error {
	conn, err := connectBus()
	if err != nil {
		return err
	}
	defer conn.Close()
	return ask(conn, f)
}

func ask(conn *dbus.Conn, f func(ctx context.Context, o dbus.BusObject) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), busTimeout)
	defer cancel()
	return f(ctx, conn.Object(resolvedName, resolvedPath))
}

// connectBus connects to the system bus. The connection outlives the time that connecting may take.
func connectBus() (*dbus.Conn, error) {
	ctx, cancel := context.WithCancel(context.Background())
	late := time.AfterFunc(busTimeout, cancel)
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if !late.Stop() && err == nil {
		err = errors.Join(context.DeadlineExceeded, conn.Close())
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("connect to the system bus: %w", err)
	}
	return conn, nil
}

// onBusLocked is onBus by the connection that is kept.
func (d *resolvedDNS) onBusLocked(f func(ctx context.Context, o dbus.BusObject) error) (err error) {
	if d.conn != nil {
		if err = ask(d.conn, f); err == nil || d.conn.Connected() {
			return err
		}
		d.hangUpLocked() // the bus started anew
	}
	if d.conn, err = connectBus(); err != nil {
		return err
	}
	return ask(d.conn, f)
}

func (d *resolvedDNS) hangUpLocked() {
	if d.conn != nil {
		_ = d.conn.Close() // it may be closed already
	}
	d.conn, d.seen = nil, nil
}

func (d *resolvedDNS) Set(c DNSConfig) error {
	if err := c.validate(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.config != nil && equalConfig(*d.config, c) {
		return nil
	}
	return d.setLocked(c)
}

func (d *resolvedDNS) setLocked(c DNSConfig) error {
	link, err := net.InterfaceByName(c.Interface)
	if err != nil {
		return fmt.Errorf("set DNS: interface %s: %w", c.Interface, err)
	}
	record := dnsRecord{Mode: ModeResolved, Interface: c.Interface, Server: c.Server}
	if err := record.save(d.stateDir); err != nil {
		return fmt.Errorf("set DNS: %w", err)
	}
	d.touched = c.Interface
	err = d.onBusLocked(func(ctx context.Context, o dbus.BusObject) error {
		index := int32(link.Index)
		must := func(method string, args ...any) error {
			if err := o.CallWithContext(ctx, resolvedManager+"."+method, 0, args...).Err; err != nil {
				return fmt.Errorf("systemd-resolved: %s: %w", method, err)
			}
			return nil
		}
		// Servers come last: from then on the link is asked, and by then it is settled what about. What is unknown to some
		// older versions is not needed for names to resolve.
		for _, setting := range []struct {
			method string
			value  any
		}{
			{"SetLinkDefaultRoute", false},
			{"SetLinkLLMNR", "no"}, {"SetLinkMulticastDNS", "no"},
			{"SetLinkDNSSEC", "no"}, {"SetLinkDNSOverTLS", "no"}, // a private zone isn't signed, and the tunnel is private
		} {
			if err := must(setting.method, index, setting.value); err != nil {
				d.log.Debug("left at its default", "error", err)
			}
		}
		if err := must("SetLinkDomains", index, resolvedDomains(c)); err != nil {
			return err
		}
		if err := must("SetLinkDNS", index, []resolvedAddress{address(c.Server)}); err != nil {
			return err
		}
		return must("FlushCaches")
	})
	d.seen = nil
	if err != nil {
		if d.config == nil {
			d.hangUpLocked()
		}
		return fmt.Errorf("set DNS: %w", err)
	}
	d.config = &c
	return nil
}

// Refresh sets everything again when systemd-resolved has forgotten it, as it does at a restart.
func (d *resolvedDNS) Refresh() (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.config == nil {
		return false, nil
	}
	link, err := net.InterfaceByName(d.config.Interface)
	if err != nil {
		return false, fmt.Errorf("interface %s: %w", d.config.Interface, err)
	}
	if d.seen, err = d.serversLocked(); err != nil {
		return false, err
	}
	for _, s := range d.seen {
		if a, ok := netip.AddrFromSlice(s.Address); ok && int(s.Index) == link.Index && a == d.config.Server {
			return false, nil
		}
	}
	return true, d.setLocked(*d.config)
}

func (d *resolvedDNS) serversLocked() (servers []resolvedServer, err error) {
	use := onBus
	if d.config != nil {
		use = d.onBusLocked
	}
	err = use(func(ctx context.Context, o dbus.BusObject) error {
		var v dbus.Variant
		call := o.CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, resolvedManager, "DNS")
		if err := call.Store(&v); err != nil {
			return fmt.Errorf("systemd-resolved: DNS: %w", err)
		}
		return v.Store(&servers)
	})
	return servers, err
}

// Upstreams are the servers of all other links, in systemd-resolved's order.
func (d *resolvedDNS) Upstreams() []netip.AddrPort {
	d.mu.Lock()
	defer d.mu.Unlock()
	servers := d.seen
	if d.seen = nil; servers == nil {
		var err error
		if servers, err = d.serversLocked(); err != nil {
			d.log.Warn("the system's resolvers aren't known", "error", err)
			return nil
		}
	}
	own, index := netip.Addr{}, 0
	if d.config != nil {
		own = d.config.Server
		if link, err := net.InterfaceByName(d.config.Interface); err == nil {
			index = link.Index
		}
	}
	var addrs []netip.Addr
	for _, s := range servers {
		a, ok := netip.AddrFromSlice(s.Address)
		if !ok || index != 0 && int(s.Index) == index {
			continue
		}
		if a.Is6() && a.IsLinkLocalUnicast() {
			if link, err := net.InterfaceByIndex(int(s.Index)); err == nil {
				a = a.WithZone(link.Name)
			}
		}
		addrs = append(addrs, a)
	}
	return upstreams(addrs, own)
}

func (d *resolvedDNS) Restore() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hangUpLocked()
	if d.touched == "" {
		return nil
	}
	if err := revertResolved(d.touched); err != nil && d.config != nil {
		return err // else the service was never there
	}
	d.config, d.touched = nil, ""
	return removeDNSRecord(d.stateDir)
}

// revertResolved drops a link's settings. A link that is gone has taken them along.
func revertResolved(name string) error {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return nil
	}
	return onBus(func(ctx context.Context, o dbus.BusObject) error {
		err := o.CallWithContext(ctx, resolvedManager+".RevertLink", 0, int32(link.Index)).Err
		if err != nil && !strings.Contains(err.Error(), "NoSuchLink") {
			return fmt.Errorf("restore DNS: systemd-resolved: RevertLink: %w", err)
		}
		return o.CallWithContext(ctx, resolvedManager+".FlushCaches", 0).Err
	})
}
