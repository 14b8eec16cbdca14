// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// ErrEgress says that a rule about the world outside can't be read.
var ErrEgress = errors.New("invalid egress rule")

// The rules that stand alone.
const (
	EgressNone = "none"
	EgressAll  = "all"
)

const (
	maxEgressRules = 1024
	maxEgressName  = 253 // RFC 1035, section 2.3.4, without the dots at the ends
	// A prefix that is shorter than these names no private network: it says "everything" in another way.
	minPrivate4, minPrivate6 = 8, 7
)

// Egress says what a sandbox may reach outside of its network: names, and what they stand for, and addresses. It is immutable,
// and safe for concurrent use; nil and the zero value allow nothing.
type Egress struct {
	rules []egressRule
}

// egressRule is one of three kinds: everything, names, or a prefix.
type egressRule struct {
	text   string
	all    bool
	name   string       // canonical, without dots at the ends; of a wildcard, what follows the "*."
	wild   bool         // what is below name
	prefix netip.Prefix // valid: this is its kind
	first  uint16       // of the ports
	last   uint16
}

// ParseEgress reads rules, each of which may be a list with commas: "all", "none", a name, "*.name", an address or a prefix,
// and all but "none" with ":port" or ":port-port". With a port an IPv6 address or prefix is in brackets.
func ParseEgress(rules []string) (*Egress, error) {
	e := new(Egress)
	none := false
	for _, list := range rules {
		for text := range strings.SplitSeq(list, ",") {
			if text = strings.TrimSpace(text); strings.EqualFold(text, EgressNone) {
				none = true
				continue
			}
			r, err := parseEgressRule(text)
			if err != nil {
				return nil, fmt.Errorf("%w: %q: %w", ErrEgress, text, err)
			}
			if !slices.ContainsFunc(e.rules, func(o egressRule) bool { return o.text == r.text }) {
				e.rules = append(e.rules, r)
			}
		}
	}
	switch {
	case none && len(e.rules) > 0:
		return nil, fmt.Errorf("%w: %q goes with no other rule", ErrEgress, EgressNone)
	case len(e.rules) > maxEgressRules:
		return nil, fmt.Errorf("%w: more than %d", ErrEgress, maxEgressRules)
	}
	return e, nil
}

func parseEgressRule(text string) (r egressRule, err error) {
	host, ports := splitEgress(text)
	if r.first, r.last, err = parsePorts(ports); err != nil {
		return r, err
	}
	suffix := ""
	if ports != "" {
		suffix = ":" + portsText(r.first, r.last)
	}
	if strings.EqualFold(host, EgressAll) {
		r.all, r.text = true, EgressAll+suffix
		return r, nil
	}
	if r.prefix, err = parsePrefix(host); err == nil {
		shown := r.prefix.String()
		if r.prefix.IsSingleIP() {
			shown = r.prefix.Addr().String()
		}
		if suffix != "" && r.prefix.Addr().Is6() {
			shown = "[" + shown + "]"
		}
		r.text = shown + suffix
		return r, nil
	}
	if strings.ContainsAny(host, "/[]:") || looksNumeric(host) {
		return r, err
	}
	name := strings.TrimSuffix(strings.ToLower(host), ".")
	name, r.wild = strings.CutPrefix(name, "*.")
	if err := validName(name); err != nil {
		return r, err
	}
	if !r.wild && !strings.Contains(name, ".") {
		return r, errors.New("a name outside of the network has a dot in it")
	}
	r.name, r.text = name, name+suffix
	if r.wild {
		r.text = "*." + r.text
	}
	return r, nil
}

// splitEgress takes the ports off a rule.
func splitEgress(text string) (host, ports string) {
	if inner, ok := strings.CutPrefix(text, "["); ok {
		if host, rest, closed := strings.Cut(inner, "]"); closed && (rest == "" || rest[0] == ':' && len(rest) > 1) {
			return host, strings.TrimPrefix(rest, ":")
		}
		return text, ""
	}
	if i := strings.IndexByte(text, ':'); i >= 0 && i == strings.LastIndexByte(text, ':') {
		if i == len(text)-1 {
			return text, "" // nothing follows: no name either
		}
		return text[:i], text[i+1:]
	}
	return text, "" // with many colons it is an IPv6 address
}

func parsePorts(text string) (first, last uint16, err error) {
	if text == "" {
		return 1, 65535, nil
	}
	from, to, ranged := strings.Cut(text, "-")
	if first, err = parsePort(from); err != nil {
		return 0, 0, err
	}
	if last = first; ranged {
		if last, err = parsePort(to); err != nil {
			return 0, 0, err
		}
	}
	if last < first {
		return 0, 0, fmt.Errorf("port %d comes after %d", first, last)
	}
	return first, last, nil
}

func parsePort(text string) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 || text[0] == '+' {
		return 0, fmt.Errorf("%q is no port", text)
	}
	return uint16(n), nil
}

func portsText(first, last uint16) string {
	if first == last {
		return strconv.Itoa(int(first))
	}
	return fmt.Sprintf("%d-%d", first, last)
}

// parsePrefix takes an address for a prefix of its whole length.
func parsePrefix(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		a, addrErr := netip.ParseAddr(text)
		if addrErr != nil || a.Zone() != "" {
			return netip.Prefix{}, errors.New("neither a name nor an address")
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	switch {
	case p.Addr().Is4In6():
		return netip.Prefix{}, errors.New("an IPv4 address in IPv6's clothes; write it as it is")
	case p.Masked() != p:
		return netip.Prefix{}, fmt.Errorf("bits are set after the prefix; it is %v", p.Masked())
	}
	return p, nil
}

// looksNumeric tells addresses that are cut or wrong from names: no top-level domain is a number.
func looksNumeric(host string) bool {
	last := strings.TrimSuffix(host, ".")
	last = last[strings.LastIndexByte(last, '.')+1:]
	return last != "" && strings.Trim(last, "0123456789") == ""
}

// validName accepts names as they are on the wire, in lower case; an underscore may be part of them.
func validName(name string) error {
	if name == "" || len(name) > maxEgressName {
		return errors.New("neither a name nor an address")
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return fmt.Errorf("%q is no part of a name", label)
		}
		for _, c := range label {
			switch {
			case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_':
			case c > 127:
				return errors.New("write names as DNS has them, with xn--")
			default:
				return fmt.Errorf("%q is no part of a name", label)
			}
		}
	}
	return nil
}

// Rules returns the rules in a canonical form, none for an Egress that allows nothing.
func (e *Egress) Rules() []string {
	list := []string{}
	if e != nil {
		for _, r := range e.rules {
			list = append(list, r.text)
		}
	}
	return list
}

// Literals returns the single addresses that rules name.
func (e *Egress) Literals() (list []netip.Addr) {
	if e != nil {
		for _, r := range e.rules {
			if r.prefix.IsValid() && r.prefix.IsSingleIP() {
				list = append(list, r.prefix.Addr())
			}
		}
	}
	return list
}

// MayAsk reports whether a name may be looked up. It is in lower case, without a dot at its end.
func (e *Egress) MayAsk(name string) bool {
	return e.some(func(r *egressRule) bool { return r.all || r.names(name) })
}

// MayReachNamed reports whether a name may be connected to at a port, whatever public address it has.
func (e *Egress) MayReachNamed(name string, port uint16) bool {
	return e.some(func(r *egressRule) bool { return r.names(name) && r.allows(port) })
}

// Place is what an address is, as far as rules differ about it.
type Place uint8

// The places.
const (
	PlacePublic  Place = iota // out in the world
	PlacePrivate              // in a network of somebody's own: to be named by a rule of its own
	PlaceHost                 // of the host that the sandbox is on: to be named alone
)

// MayReach reports whether an address may be connected to at a port because of itself, and not of a name. Port 0 stands for any.
func (e *Egress) MayReach(to netip.Addr, port uint16, place Place) bool {
	return e.some(func(r *egressRule) bool {
		if port != 0 && !r.allows(port) {
			return false
		}
		if r.all {
			return place == PlacePublic
		}
		return r.prefix.Contains(to) && r.means(place)
	})
}

func (e *Egress) some(f func(*egressRule) bool) bool {
	if e == nil {
		return false
	}
	for i := range e.rules {
		if f(&e.rules[i]) {
			return true
		}
	}
	return false
}

func (r *egressRule) allows(port uint16) bool { return r.first <= port && port <= r.last }

func (r *egressRule) names(name string) bool {
	if r.name == "" {
		return false
	}
	if !r.wild {
		return name == r.name
	}
	below, ok := strings.CutSuffix(name, r.name)
	return ok && len(below) > 1 && below[len(below)-1] == '.'
}

// means tells whether a prefix is narrow enough for a place.
func (r *egressRule) means(place Place) bool {
	switch {
	case place == PlaceHost:
		return r.prefix.IsSingleIP()
	case place == PlacePrivate && r.prefix.Addr().Is4():
		return r.prefix.Bits() >= minPrivate4
	case place == PlacePrivate:
		return r.prefix.Bits() >= minPrivate6
	}
	return true
}
