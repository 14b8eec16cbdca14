// SPDX-License-Identifier: Apache-2.0

package platform

import "net/netip"

// ResolverFile is what resolv.conf says.
type ResolverFile struct {
	Nameservers []netip.Addr
	Search      []string
	Owner       string // the program that says in a comment that the file is its; empty: none
}

// Resolver reads the file of an environment.
func (e Environment) Resolver() ResolverFile {
	r := parseResolvConf(e.ResolvConf)
	return ResolverFile{Nameservers: r.Nameservers, Search: r.Search, Owner: r.Owner}
}
