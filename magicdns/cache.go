// SPDX-License-Identifier: Apache-2.0

package magicdns

import (
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	cacheEntries = 4096
	// cacheMessage is the longest message kept, in bytes; with cacheEntries it
	// bounds the cache's memory.
	cacheMessage   = 4096
	maxTTL         = 3600 // seconds
	maxNegativeTTL = 300  // seconds
)

// question is what two questions have in common that may share an answer.
type question struct {
	name        string // canonical
	kind, class uint16
	do, cd      bool
}

type cached struct {
	msg     *dns.Msg // never changed, never given out
	stored  time.Time
	expires time.Time
}

// cache holds upstream answers for their time to live. Safe for concurrent use.
type cache struct {
	mu      sync.Mutex
	entries map[question]cached
}

func (c *cache) clear() {
	c.mu.Lock()
	c.entries = nil
	c.mu.Unlock()
}

// get gives a copy of an answer, its TTLs lowered by its age (RFC 1035, section 7.4).
func (c *cache) get(q question, now time.Time) *dns.Msg {
	c.mu.Lock()
	e, ok := c.entries[q]
	if ok && !now.Before(e.expires) {
		delete(c.entries, q)
		ok = false
	}
	c.mu.Unlock()
	if !ok {
		return nil
	}
	m := e.msg.Copy()
	age := uint32(max(0, now.Sub(e.stored)/time.Second))
	for _, rr := range records(m) {
		h := rr.Header()
		h.Ttl -= min(age, h.Ttl)
	}
	return m
}

func (c *cache) put(q question, m *dns.Msg, now time.Time) {
	life := lifetime(m)
	if life == 0 || m.Len() > cacheMessage {
		return
	}
	m = m.Copy()
	for _, rr := range records(m) {
		rr.Header().Ttl = min(rr.Header().Ttl, maxTTL)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries == nil {
		c.entries = make(map[question]cached)
	}
	if _, ok := c.entries[q]; !ok && len(c.entries) >= cacheEntries {
		c.evict(now)
	}
	c.entries[q] = cached{m, now, now.Add(time.Duration(life) * time.Second)}
}

// evict drops what has expired among a few entries, at least one of them: the
// order of a map is random enough. c.mu is held.
func (c *cache) evict(now time.Time) {
	looked := 0
	for q, e := range c.entries {
		if looked == 0 || !now.Before(e.expires) {
			delete(c.entries, q)
		}
		if looked++; looked == 16 {
			return
		}
	}
}

func records(m *dns.Msg) []dns.RR {
	rrs := make([]dns.RR, 0, len(m.Answer)+len(m.Ns)+len(m.Extra))
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if rr.Header().Rrtype != dns.TypeOPT { // its TTL field is flags
				rrs = append(rrs, rr)
			}
		}
	}
	return rrs
}

// lifetime is how long an answer may be kept, in seconds; 0 means not at all.
// Negative answers need a SOA to be kept (RFC 2308, section 5).
func lifetime(m *dns.Msg) uint32 {
	if m.Truncated || m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return 0
	}
	life := uint32(maxTTL)
	for _, rr := range records(m) {
		life = min(life, rr.Header().Ttl)
	}
	if m.Rcode == dns.RcodeSuccess && answers(m) {
		return life
	}
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			return min(life, soa.Minttl, maxNegativeTTL)
		}
	}
	return 0
}

// answers tells whether m has a record of the type that was asked for; an alias
// that leads nowhere is as negative as nothing (RFC 2308, section 2.2).
func answers(m *dns.Msg) bool {
	for _, rr := range m.Answer {
		if len(m.Question) == 1 && rr.Header().Rrtype == m.Question[0].Qtype {
			return true
		}
	}
	return false
}
