// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/platform"
	"github.com/pilot-protocol/pilot/platform/inspect"
)

// names: do programs on this host get the right answer to this agent's own name?
func names(f *Facts) []Finding {
	self, n, err := f.self(), f.Host.Names.Value, f.Host.Names.Err
	switch {
	case self == nil:
		return notUp()
	case f.userspace():
		return notNeeded()
	case err != nil:
		return f.unseen(err)
	}
	want := []netip.Addr{self.Address}
	switch {
	case slices.Equal(n.System, want):
		return well(self.FQDN + " resolves to " + self.Address.String())
	case len(n.System) > 0:
		return []Finding{problem("DNS_SHADOWED", fmt.Sprintf("%s resolves to %s here, and it is %s", self.FQDN, n.System, self.Address),
			"somebody else answers for this zone: look into /etc/hosts, and for another VPN or a resolver that claims the zone "+f.Status.Zone)}
	case !slices.Equal(n.Direct, want):
		return []Finding{problem("DNS_DEAD", fmt.Sprintf("this node's own DNS does not answer for %s: %v", self.FQDN, n.DirectErr),
			"see routes and firewall above; then the daemon's log")}
	}
	return []Finding{problem("DNS_OVERRIDDEN", fmt.Sprintf("programs here are not told to ask this node for names (%s), which would answer", self.DNS),
		"see resolver below; to ask by hand: dig @"+identity.ServiceAddress(f.prefix()).String()+" AAAA "+self.FQDN)}
}

// resolver: who decides on this host what names mean, and do several?
func resolver(f *Facts) []Finding {
	r, err := f.Host.Resolver.Value, f.Host.Resolver.Err
	if f.userspace() {
		return notNeeded()
	}
	if err != nil {
		return f.unseen(err)
	}
	var out []Finding
	self := f.self()
	if self != nil && self.DNS == "none" {
		out = append(out, problem("DNS_NONE", "nobody on this host could be told of the zone: "+r.Choice.Reason, unwritable(r)))
	} else if r.Choice.Mode == platform.ModeNone && (f.Host.Root || r.Immutable) {
		out = append(out, problem("DNS_IMMUTABLE", "/etc/resolv.conf can't be changed", unwritable(r)))
	}
	if self != nil {
		out = append(out, claims(f, r)...)
		// Where systemd-resolved is asked by its own protocol, its list is not in the file.
		listed := len(r.File.Search) > 0 || self.DNS != platform.ModeResolved
		if self.DNS != "none" && listed && !slices.Contains(r.File.Search, f.Status.Zone) {
			out = append(out, warning("DNS_SEARCH", "bare names don't resolve: the search list of /etc/resolv.conf lacks "+f.Status.Zone, "use full names, or have "+owner(r)+" add it"))
		}
	}
	if r.File.Owner != "" && r.Choice.Mode == platform.ModeFile && r.File.Owner != "pilot" {
		out = append(out, warning("DNS_TWO_WRITERS", "/etc/resolv.conf is written by "+r.File.Owner+" and by pilot in turn", "it is set again within seconds; use systemd-resolved, or resolvconf, to end that"))
	}
	if len(out) == 0 {
		return well(r.Choice.Reason)
	}
	return out
}

func owner(r inspect.Resolver) string {
	if r.File.Owner != "" && r.File.Owner != "pilot" {
		return r.File.Owner
	}
	return "the program that writes it"
}

func unwritable(r inspect.Resolver) string {
	switch {
	case r.Immutable:
		return "chattr -i /etc/resolv.conf, then pilot down and pilot up; somebody made it immutable on purpose"
	case r.Bound:
		return "it is mounted from elsewhere, as in containers: start the container with the node's DNS as its resolver, or mount it writable"
	}
	return "run the daemon as its package installs it, or make /etc/resolv.conf writable for it"
}

// claims finds interfaces that systemd-resolved sends our zone to, or all names ahead of ours.
func claims(f *Facts, r inspect.Resolver) (out []Finding) {
	self, zone := f.self(), strings.TrimSuffix(f.Status.Zone, ".")
	mine := false
	for _, c := range r.Claims {
		domain := strings.TrimSuffix(c.Domain, ".")
		switch {
		case c.Interface == self.Interface:
			mine = mine || domain == zone
		case domain == zone || strings.HasSuffix(domain, "."+zone) || domain == "internal":
			out = append(out, problem("DNS_CLAIMED", fmt.Sprintf("%s claims names of %s at systemd-resolved", c.Interface, c.Domain),
				"take that domain off it: resolvectl domain "+c.Interface+" \"\"; or rename one of the two networks"))
		}
	}
	if self.DNS == platform.ModeResolved && len(r.Claims) > 0 && !mine {
		out = append(out, problem("DNS_OVERRIDDEN", "systemd-resolved does not know any more that "+self.Interface+" has the zone "+zone, "pilot down, then pilot up"))
	}
	return out
}
