// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"net/http"
	"strings"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// The headers that say who asks. Their values were proved in the tunnel: the peer's address belongs to its key.
const (
	headerAgent   = "Pilot-Agent"         // the name that the authority gave it
	headerKey     = "Pilot-Agent-Key"     // agent:…
	headerAddress = "Pilot-Agent-Address" // in the network
	headerTags    = "Pilot-Agent-Tags"    // with commas between; absent without any
)

// reserved are beginnings of names that a caller may not send, in letters and digits alone: of ours, and of those by which
// programs learn who is behind a proxy.
func reserved() []string {
	return []string{"pilotagent", "xforwarded", "forwarded", "xrealip"}
}

// isReserved tells whether a program could take a header for one of ours. Many (CGI, WSGI, PHP and others) know header names
// as variables, in which "-", "_" and other signs are the same.
func isReserved(name string) bool {
	var b strings.Builder
	for _, c := range []byte(name) {
		switch {
		case 'A' <= c && c <= 'Z':
			b.WriteByte(c + 'a' - 'A')
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
			b.WriteByte(c)
		}
	}
	for _, r := range reserved() {
		if strings.HasPrefix(b.String(), r) {
			return true
		}
	}
	return false
}

// identify takes away all headers that say who asks, and sets what is so.
func identify(h http.Header, caller localapi.Agent) {
	for name := range h {
		if isReserved(name) {
			delete(h, name)
		}
	}
	h.Set(headerAgent, caller.Name)
	h.Set(headerKey, caller.Key.String())
	h.Set(headerAddress, caller.Address.String())
	if len(caller.Tags) > 0 {
		h.Set(headerTags, strings.Join(caller.Tags, ","))
	}
}
