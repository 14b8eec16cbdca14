// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
)

// resolvMarker is the first line of every file that we write.
const resolvMarker = "# Written by pilot, which puts the former file back when it ends."

// othersMark begins a line of our files that says who is asked, by us, for all names but ours.
const othersMark = "# Other names: "

// resolvConf is what a resolv.conf(5) says.
type resolvConf struct {
	Nameservers []netip.Addr
	Search      []string
	Kept        []string     // lines of options and sortlist, as they are
	Owner       string       // the program that says in a comment that the file is its; empty: none
	Others      []netip.Addr // in a file of ours, the nameservers of the one that it was made of
}

// parseResolvConf reads a file as the C library does: keywords start a line, the last search or domain counts, what
// isn't understood is passed over. It never fails.
func parseResolvConf(data []byte) resolvConf {
	var r resolvConf
	for line := range bytes.Lines(data) {
		s := strings.TrimRight(string(line), "\r\n")
		if s == "" {
			continue
		}
		if s[0] == '#' || s[0] == ';' {
			if r.Owner == "" {
				r.Owner = commentOwner(s)
			}
			if other, ok := strings.CutPrefix(s, othersMark); ok && r.Owner == "pilot" {
				if a, err := netip.ParseAddr(other); err == nil {
					r.Others = append(r.Others, a)
				}
			}
			continue
		}
		fields := strings.FieldsFunc(s, func(c rune) bool { return strings.ContainsRune(" \t\r\v\f", c) })
		if len(fields) < 2 || s[0] == ' ' || s[0] == '\t' {
			continue
		}
		switch fields[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(fields[1]); err == nil {
				r.Nameservers = append(r.Nameservers, a)
			}
		case "search":
			r.Search = fields[1:]
		case "domain":
			r.Search = fields[1:2]
		case "options", "sortlist":
			r.Kept = append(r.Kept, s)
		}
	}
	return r
}

// commentOwner finds the program that wrote a file in a comment of it.
func commentOwner(comment string) string {
	lower := strings.ToLower(comment)
	for _, o := range []string{"written by pilot", "systemd-resolved", "networkmanager", "openresolv", "resolvconf", "dhcpcd", "connman", "docker"} {
		if strings.Contains(lower, o) {
			return strings.TrimPrefix(o, "written by ")
		}
	}
	return ""
}

// unrender makes theirs out of a file of ours that nobody has put back.
func (r resolvConf) unrender(c DNSConfig) []byte {
	var b bytes.Buffer
	for _, a := range r.Others {
		b.WriteString("nameserver " + a.String() + "\n")
	}
	search := slices.DeleteFunc(slices.Clone(r.Search), func(s string) bool { return slices.Contains(c.Search, s) })
	if len(search) > 0 {
		b.WriteString("search " + strings.Join(search, " ") + "\n")
	}
	for _, line := range r.Kept {
		b.WriteString(line + "\n")
	}
	return b.Bytes()
}

// render makes our file out of theirs. Ours is the only nameserver in it: the others are asked through it. Were they
// listed too, names of agents would reach them whenever ours is slow, and a C library that asks all at once (musl)
// would take their word that no such name exists.
func (r resolvConf) render(c DNSConfig) []byte {
	var b bytes.Buffer
	b.WriteString(resolvMarker + "\n")
	// This also tells our files from each other, by what they were made of.
	others := r.Nameservers
	if r.Owner == "pilot" {
		others = r.Others
	}
	for _, a := range others {
		b.WriteString(othersMark + a.String() + "\n")
	}
	b.WriteString("nameserver " + c.Server.String() + "\n")
	search := slices.Clone(c.Search)
	for _, s := range r.Search {
		if !slices.Contains(search, s) {
			search = append(search, s)
		}
	}
	if len(search) > 0 {
		b.WriteString("search " + strings.Join(search, " ") + "\n")
	}
	for _, line := range r.Kept {
		b.WriteString(line + "\n")
	}
	return b.Bytes()
}
