// SPDX-License-Identifier: Apache-2.0

package portmap

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	natpmplib "github.com/jackpal/go-nat-pmp"
)

type natpmp struct{ m *Mapper }

func (p *natpmp) request(ctx context.Context, gateway netip.Addr, last Mapping, lifetime time.Duration) (Mapping, error) {
	limit := askLimit
	if end, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(end))
	}
	if ctx.Err() != nil || limit <= 0 {
		return Mapping{}, fmt.Errorf("NAT-PMP: %w", context.DeadlineExceeded)
	}
	// The library knows no context, but ends in time. There are two questions.
	return p.ask(natpmplib.NewClientWithTimeout(gateway.AsSlice(), limit/2), last, lifetime)
}

// ask makes the two questions of which a mapping consists.
func (p *natpmp) ask(c *natpmplib.Client, last Mapping, lifetime time.Duration) (Mapping, error) {
	if lifetime == 0 {
		_, err := c.AddPortMappingWithDuration("udp", int(p.m.options.Port), 0, 0)
		return Mapping{}, err
	}
	public, err := c.GetExternalAddress()
	if err != nil {
		return Mapping{}, fmt.Errorf("NAT-PMP: %w", err)
	}
	wished := p.m.options.Port
	if last.External.IsValid() {
		wished = last.External.Port()
	}
	got, err := c.AddPortMappingWithDuration("udp", int(p.m.options.Port), int(wished), lifetime)
	if err != nil {
		return Mapping{}, fmt.Errorf("NAT-PMP: %w", err)
	}
	if got.InternalPort != p.m.options.Port {
		return Mapping{}, fmt.Errorf("NAT-PMP: %w: this is no answer to the question", errRefused)
	}
	granted := min(time.Duration(got.PortMappingLifetimeInSeconds)*time.Second, maxLifetime)
	return Mapping{
		Protocol: NATPMP, External: netip.AddrPortFrom(netip.AddrFrom4(public.ExternalIPAddress), got.MappedExternalPort),
		Expires: time.Now().Add(granted),
	}, nil
}
