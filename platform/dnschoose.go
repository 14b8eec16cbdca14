// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"net/netip"
	"slices"
	"strings"
)

// The kinds of a resolvconf program.
const (
	ResolvconfOpenresolv = "openresolv"
	ResolvconfDebian     = "debian"
	ResolvconfSystemd    = "systemd" // resolvectl under another name
)

// Environment is what ChooseDNS decides by. The zero value is a system without any of it.
type Environment struct {
	ResolvConf []byte   // content of /etc/resolv.conf, through a symlink; nil: absent or unreadable
	Symlink    string   // what it points to, as written; empty: no symlink
	BindMount  bool     // something is mounted on the file, as in containers
	ReadOnly   bool     // neither the file nor its folder can be written
	BusNames   []string // well-known names on the system bus, running or startable
	Resolvconf string   // kind of the resolvconf program; empty: there is none
}

// Decision is the way to tell the system's resolver, and why.
type Decision struct{ Mode, Reason string }

// ChooseDNS decides how to tell the system's resolver. What counts is whom programs really ask, that is, what
// /etc/resolv.conf says; a service that is installed but not asked is of no use.
func ChooseDNS(e Environment) Decision {
	rc := parseResolvConf(e.ResolvConf)
	resolved := slices.Contains(e.BusNames, "org.freedesktop.resolve1")
	stub := e.stub(rc)
	switch {
	case stub && resolved:
		return Decision{ModeResolved, "resolv.conf names only the stub of systemd-resolved, which is on the bus"}
	case e.managedByResolvconf(rc):
		return Decision{ModeResolvconf, "resolv.conf is made by resolvconf (" + e.Resolvconf + ")"}
	case e.ReadOnly:
		return Decision{ModeNone, "resolv.conf can't be written"}
	case stub:
		return Decision{ModeFile, "resolv.conf names the stub of systemd-resolved, which isn't on this bus"}
	case resolved && (rc.Owner == "systemd-resolved" || strings.Contains(e.Symlink, "systemd/resolve/")):
		return Decision{ModeFile, "resolv.conf lets programs ask past systemd-resolved"}
	case e.BindMount:
		return Decision{ModeFile, "resolv.conf is mounted from elsewhere, so it is rewritten in place"}
	case e.Symlink != "":
		return Decision{ModeFile, "resolv.conf is a symlink to " + e.Symlink + ", replaced by a file"}
	case e.ResolvConf == nil:
		return Decision{ModeFile, "there is no resolv.conf"}
	case rc.Owner != "":
		return Decision{ModeFile, "resolv.conf is written by " + rc.Owner + ", and set again when that changes it"}
	default:
		return Decision{ModeFile, "resolv.conf is a plain file"}
	}
}

// stub says whether all that programs ask is systemd-resolved. At boot its file may not be there yet.
func (e Environment) stub(rc resolvConf) bool {
	if e.ResolvConf == nil {
		return strings.HasSuffix(e.Symlink, "systemd/resolve/stub-resolv.conf")
	}
	return len(rc.Nameservers) > 0 && !slices.ContainsFunc(rc.Nameservers, func(a netip.Addr) bool { return !isStub(a) })
}

// early says that the resolver that is asked may be about to come: systemd-resolved is, and isn't on the bus.
func (e Environment) early() bool {
	return e.stub(parseResolvConf(e.ResolvConf)) && !slices.Contains(e.BusNames, "org.freedesktop.resolve1")
}

func (e Environment) managedByResolvconf(rc resolvConf) bool {
	if e.Resolvconf != ResolvconfDebian && e.Resolvconf != ResolvconfOpenresolv {
		return false
	}
	return rc.Owner == "resolvconf" || rc.Owner == "openresolv" || strings.Contains(e.Symlink, "resolvconf/")
}

// isStub knows the two addresses at which systemd-resolved listens (systemd-resolved.service(8)).
func isStub(a netip.Addr) bool {
	return a == netip.AddrFrom4([4]byte{127, 0, 0, 53}) || a == netip.AddrFrom4([4]byte{127, 0, 0, 54})
}
