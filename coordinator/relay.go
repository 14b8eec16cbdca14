// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/coordinator/relayserver"
	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/underlay/relay"
)

const relayKeyFile = "relay.key"

// RelayOptions say what kind of relay a coordinator is. It takes relay connections on its TCP port.
type RelayOptions struct {
	// Off makes it none.
	Off bool
	// Name is a label that no other relay has; empty: one is made of its key.
	Name string
	// Region and Jurisdiction say where it is and under whose law, in the words of package identity; either may be empty.
	Region, Jurisdiction string
	// UDPPort is the first port to try; 0: the number of the TCP port. If it is taken, the next one is tried, then any.
	UDPPort uint16
	// Rate is what it forwards for one client, in bytes a second; 0: the default, below 0: no limit.
	Rate int
}

// Check reports what of the options can't be.
func (o RelayOptions) Check() error {
	if o.Name != "" {
		if err := identity.ValidateRelayName(o.Name); err != nil {
			return fmt.Errorf("the relay's name: %w", err)
		}
	}
	if err := identity.ValidateRegion(o.Region); err != nil {
		return err
	}
	return identity.ValidateJurisdiction(o.Jurisdiction)
}

// openRelay reads the relay's key and opens its UDP port. It comes after the TCP port is open.
func (c *Coordinator) openRelay() error {
	o := c.options
	if o.Relay.Off {
		return nil
	}
	if err := o.Relay.Check(); err != nil {
		return err
	}
	key, err := relayserver.LoadKey(filepath.Join(o.StateDir, relayKeyFile))
	if err != nil {
		return err
	}
	c.relayKey = key.Public()
	host, ports := relayserver.UDPPorts(c.listener.Addr(), o.Relay.UDPPort)
	c.relay, err = relayserver.New(relayserver.Options{
		Network: c.ca.Authority(), Key: key, Host: host, Ports: ports, Rate: o.Relay.Rate, Check: c.checkMember,
		Log: o.Log, Now: o.Now,
	})
	return err
}

// checkMember refuses members that the registry knows to be none any more. While the registry is away their passes
// count, as they do everywhere else.
func (c *Coordinator) checkMember(ctx context.Context, pass identity.RelayPass) error {
	if err := c.Ready(ctx); err != nil {
		return err
	}
	_, err := c.registry.member(ctx, pass.Agent)
	if api.HasCode(err, api.CodeRevoked) || api.HasCode(err, api.CodeNotMember) {
		return err
	}
	return nil
}

// revoked ends the relay connection of an agent.
func (c *Coordinator) revoked(agent identity.AgentPublic, serial uint64) {
	if c.relay != nil {
		c.relay.Revoke(agent, serial)
	}
}

// relayProtocol lets connections that ask for a relay have it, on the same port.
func (c *Coordinator) relayProtocol(conf *tls.Config) map[string]func(*http.Server, *tls.Conn, http.Handler) {
	if c.relay == nil {
		return nil
	}
	conf.NextProtos = []string{"http/1.1", relay.ALPN}
	conf.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if slices.Contains(hello.SupportedProtos, relay.ALPN) {
			return c.relay.TLSConfig(), nil
		}
		return nil, nil
	}
	return map[string]func(*http.Server, *tls.Conn, http.Handler){
		relay.ALPN: func(_ *http.Server, conn *tls.Conn, _ http.Handler) { c.relay.Serve(conn) },
	}
}

// relayStatement is what is to be said of this coordinator as a relay; false if nobody could reach it.
func (c *Coordinator) relayStatement() (identity.RelayStatement, bool) {
	o := c.options
	s := identity.RelayStatement{
		Key: c.relayKey, Name: o.Relay.Name, Region: o.Relay.Region, Jurisdiction: o.Relay.Jurisdiction,
		Addresses: o.Advertise, UDP: c.relay.UDPPort(),
	}
	if s.Name == "" {
		s.Name = fmt.Sprintf("relay-%08x", s.ID())
	}
	if ap, err := netip.ParseAddrPort(c.listener.Addr().String()); len(s.Addresses) == 0 && err == nil && !ap.Addr().IsUnspecified() {
		s.Addresses = []string{ap.String()}
	}
	return s, len(s.Addresses) > 0
}

// listRelay puts this coordinator on the list of relays, and keeps it there.
func (c *Coordinator) listRelay(ctx context.Context, r *registry) error {
	if c.relay == nil {
		return nil
	}
	want, ok := c.relayStatement()
	if !ok {
		return nil
	}
	_, fresh, err := r.listRelay(ctx, want)
	if fresh || err != nil {
		err = r.audit(ctx, caller{}, "relay", c.relayKey.String(), "name "+want.Name, err)
	}
	return err
}

const unlistTimeout = 5 * time.Second

// keepListed renews the listing until the context ends, and ends it then.
func (c *Coordinator) keepListed(ctx context.Context, r *registry) error {
	tick := time.NewTicker(api.PingInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), unlistTimeout)
			defer cancel()
			if err := r.unlistRelay(last, c.relayKey); err != nil {
				r.log.Debug("this relay stays on the list for a while", "error", err)
			}
			return nil
		case <-tick.C:
			if err := c.listRelay(ctx, r); err != nil && ctx.Err() == nil {
				r.log.Warn("listing this coordinator as a relay", "error", err)
			}
		}
	}
}

// Relay is what the coordinator has done as a relay, and whether it is one.
func (c *Coordinator) Relay() (relayserver.Stats, bool) {
	if c.relay == nil {
		return relayserver.Stats{}, false
	}
	return c.relay.Stats(), true
}
