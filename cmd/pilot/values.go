// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilot-protocol/pilot/identity"
)

// IP protocol numbers (IANA).
const (
	protoAny = 0
	protoTCP = 6
	protoUDP = 17
)

// maxDuration keeps days from overflowing; it is about 290 years.
const maxDuration = time.Duration(1<<63 - 1)

// parseDuration reads a length of time as time.ParseDuration does, with the units d (24 h) and w (7 d) in front: "7d",
// "1d12h", "90m". It must be above zero.
func parseDuration(s string) (time.Duration, error) {
	bad := usage("%q is not a length of time", s)
	bad.Hint = "write it like 90s, 45m, 24h, 7d or 2w"
	var total time.Duration
	rest := s
	for _, unit := range []struct {
		letter string
		length time.Duration
	}{{"w", 7 * 24 * time.Hour}, {"d", 24 * time.Hour}} {
		digits, after, ok := strings.Cut(rest, unit.letter)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(digits, 10, 32)
		if err != nil || time.Duration(n) > (maxDuration-total)/unit.length {
			return 0, bad
		}
		total, rest = total+time.Duration(n)*unit.length, after
	}
	if rest != "" {
		d, err := time.ParseDuration(rest)
		if err != nil || d < 0 || d > maxDuration-total {
			return 0, bad
		}
		total += d
	}
	if total <= 0 {
		return 0, bad
	}
	return total, nil
}

// durationFlag reads a flag by parseDuration; 0 where it was not given.
func durationFlag(c *cli.Context, name string) (time.Duration, error) {
	s := c.String(name)
	if s == "" {
		return 0, nil
	}
	d, err := parseDuration(s)
	if err != nil {
		e := asError(err)
		e.Message = "--" + name + ": " + e.Message
		return 0, e
	}
	return d, nil
}

// parsePorts reads a list of ports: "443", "8000-8999", "tcp:443,udp:53". An empty list means all.
func parsePorts(s string) ([]identity.PortRange, error) {
	if s == "" {
		return nil, nil
	}
	var ports []identity.PortRange
	for item := range strings.SplitSeq(s, ",") {
		r, ok := parsePort(strings.TrimSpace(item))
		if !ok {
			bad := usage("--ports: %q is not a port or a range of ports", item)
			bad.Hint = "write them like 443, tcp:443, udp:53 or 8000-8999, with commas between"
			return nil, bad
		}
		ports = append(ports, r)
	}
	return ports, nil
}

func parsePort(s string) (identity.PortRange, bool) {
	var r identity.PortRange
	if proto, rest, ok := strings.Cut(s, ":"); ok {
		switch strings.ToLower(proto) {
		case "tcp":
			r.Proto = protoTCP
		case "udp":
			r.Proto = protoUDP
		default:
			return r, false
		}
		s = rest
	}
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	a, errA := strconv.ParseUint(first, 10, 16)
	b, errB := strconv.ParseUint(last, 10, 16)
	if errA != nil || errB != nil || a == 0 || a > b {
		return r, false
	}
	r.First, r.Last = uint16(a), uint16(b)
	return r, true
}

// formatPorts is the inverse of parsePorts; no ports at all are "all ports".
func formatPorts(ports []identity.PortRange) string {
	if len(ports) == 0 {
		return "all ports"
	}
	items := make([]string, len(ports))
	for i, r := range ports {
		s := strconv.Itoa(int(r.First))
		if r.Last != r.First {
			s += "-" + strconv.Itoa(int(r.Last))
		}
		switch r.Proto {
		case protoAny:
		case protoTCP:
			s = "tcp:" + s
		case protoUDP:
			s = "udp:" + s
		default:
			s = "protocol " + strconv.Itoa(int(r.Proto)) + ":" + s
		}
		items[i] = s
	}
	return strings.Join(items, ",")
}

// positional checks how many arguments stand beside the flags.
func positional(c *cli.Context, least, most int) error {
	switch n := c.NArg(); {
	case n < least:
		e := usage("%s is missing", argumentName(c.Command, n))
		e.Hint = "usage: " + synopsis(c.Command)
		return e
	case n > most:
		e := usage("%q is one argument too many", shown(c.Args().Get(most)))
		e.Hint = "usage: " + synopsis(c.Command)
		return e
	}
	return nil
}

func argumentName(c *cli.Command, i int) string {
	names := strings.Fields(c.ArgsUsage)
	if i < len(names) {
		return names[i]
	}
	return "an argument"
}

// shown is an argument as an error may repeat it: an invite is a secret.
func shown(arg string) string {
	if strings.HasPrefix(arg, inviteScheme) {
		return inviteScheme + "…"
	}
	return arg
}

// inviteScheme begins each invite.
const inviteScheme = "pilot://"
