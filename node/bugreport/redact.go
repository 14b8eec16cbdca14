// SPDX-License-Identifier: Apache-2.0

package bugreport

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/pilot-protocol/pilot/identity"
)

// redactor replaces what tells who and where somebody is, the same by the same within one report.
type redactor struct {
	names    *regexp.Regexp // nil: none are known
	given    map[string]string
	counts   map[string]int
	overlays []netip.Prefix
}

var (
	keyText     = regexp.MustCompile(`(agent|authority|join|tunnel|relay):[A-Za-z0-9_-]{43}`)
	addressText = regexp.MustCompile(`(?:[0-9a-fA-F]{0,4}:){2,7}(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9a-fA-F]{0,4})|\d{1,3}(?:\.\d{1,3}){3}`)
)

func newRedactor(c *Contents) *redactor {
	r := &redactor{given: map[string]string{}, counts: map[string]int{}}
	var names []string
	add := func(list ...string) {
		for _, name := range list {
			// The program's own name is that of a network, too, if nobody chose another.
			if name != "" && name != "pilot" && name != "pilot.internal" && name != "localhost" && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	add(c.Hostname)
	if s := c.Facts.Status; s != nil {
		add(s.Network, s.Zone)
		if self := s.Self; self != nil {
			add(self.Name, self.FQDN)
			r.overlays = append(r.overlays, identity.PrefixOf(self.Address))
			for _, relay := range self.Relays {
				add(relay.Name)
			}
		}
		if s.Coordinator != nil {
			for _, a := range s.Coordinator.Addresses {
				if host, _, err := net.SplitHostPort(a); err == nil && net.ParseIP(host) == nil {
					add(host)
				}
			}
		}
		for _, p := range s.Peers {
			add(p.Name, p.FQDN)
		}
	}
	if n := c.Facts.Netcheck; n != nil {
		for _, relay := range n.Relays {
			add(relay.Name)
		}
		if host, _, err := net.SplitHostPort(n.Proxy); err == nil && net.ParseIP(host) == nil {
			add(host)
		}
	}
	for _, line := range slices.Concat(c.Log, c.OldLog) {
		add(namesIn(line)...)
	}
	r.know(names)
	return r
}

// namesIn are the names that a log line has in fields of their own.
func namesIn(line string) (names []string) {
	var entry map[string]any
	if json.Unmarshal([]byte(line), &entry) != nil {
		return nil
	}
	for _, field := range []string{"agent", "name", "relay", "home", "about"} {
		if name, ok := entry[field].(string); ok && identity.ValidateName(name) == nil {
			names = append(names, name)
		}
	}
	return names
}

func (r *redactor) know(names []string) {
	if len(names) == 0 {
		return
	}
	slices.SortFunc(names, func(a, b string) int { return len(b) - len(a) }) // of two the longer goes first
	quoted := make([]string, len(names))
	for i, name := range names {
		quoted[i] = regexp.QuoteMeta(name)
	}
	r.names = regexp.MustCompile(`(?i)\b(?:` + strings.Join(quoted, "|") + `)\b`)
}

// stand is what stands for a text.
func (r *redactor) stand(kind, text string) string {
	text = kind + " " + strings.ToLower(text)
	if r.given[text] == "" {
		r.counts[kind]++
		r.given[text] = fmt.Sprintf("%s-%d", kind, r.counts[kind])
	}
	return r.given[text]
}

func (r *redactor) replace(text []byte) []byte {
	s := keyText.ReplaceAllStringFunc(string(text), func(key string) string {
		kind, _, _ := strings.Cut(key, ":")
		// The case of letters counts in a key.
		return r.stand(kind+"-key", fmt.Sprintf("%x", key))
	})
	s = addressText.ReplaceAllStringFunc(s, func(found string) string {
		a, err := netip.ParseAddr(found)
		if err != nil {
			return found // a time, say
		}
		switch a = a.Unmap(); {
		case slices.ContainsFunc(r.overlays, func(p netip.Prefix) bool { return p.Contains(a) }):
			return r.stand("overlay-address", a.String())
		case a.IsGlobalUnicast() && !a.IsPrivate():
			return r.stand("public-address", a.String())
		}
		return found
	})
	if r.names == nil {
		return []byte(s)
	}
	return []byte(r.names.ReplaceAllStringFunc(s, func(name string) string { return r.stand("name", name) }))
}
