// SPDX-License-Identifier: Apache-2.0

package node

import (
	"encoding/json"
	"html/template"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// pageText is the page at http://pilot.internal/: who this agent is, and its peers.
const pageText = `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{.Self.Name}} on {{.Network}}</title>
<style>body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.3rem .8rem .3rem 0;border-bottom:1px solid #ccc}code{font-size:90%}</style></head>
<body><h1>{{.Self.FQDN}}</h1>
<p>Address <code>{{.Self.Address}}</code><br>Key <code>{{.Self.Key}}</code><br>
Network {{.Network}}, coordinator {{if .Coordinator.Connected}}connected{{else}}not reachable{{end}}</p>
<table><tr><th>Peer</th><th>Address</th><th>State</th><th>Path</th></tr>
{{range .Peers}}<tr><td>{{.FQDN}}</td><td><code>{{.Address}}</code></td><td>{{.State}}{{with .Problem}}: {{.Message}}{{end}}</td><td>{{.Path}}{{with .Why}} ({{.}}){{end}}</td></tr>
{{else}}<tr><td colspan="4">no peers yet</td></tr>{{end}}</table>
<p><a href="/status.json">the same as JSON</a></p></body></html>
`

// page serves the status of this node to programs of this host, read only. A Host that isn't the page's own is refused, so
// that a rebound name gives a web page nothing.
func (n *Node) page() http.Handler {
	text := template.Must(template.New("page").Parse(pageText))
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status.json", func(w http.ResponseWriter, r *http.Request) {
		s, err := n.Status(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s) // the reader has gone: nobody is left to tell
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		s, err := n.Status(r.Context())
		if err != nil || s.State != localapi.StateUp {
			http.Error(w, "the network is not up", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_ = text.Execute(w, s)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !n.pageHost(r.Host) {
			http.Error(w, "this page answers to its own name only", http.StatusForbidden)
			return
		}
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
		mux.ServeHTTP(w, r)
	})
}

// pageHost accepts the zone itself, its first label, and the service address.
func (n *Node) pageHost(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	ok := false
	_ = n.view(func(m *membership) error {
		a, err := netip.ParseAddr(strings.Trim(host, "[]"))
		ok = host == m.zone || host == n.saved.Network || err == nil && a == m.engine.service
		return nil
	})
	return ok
}
