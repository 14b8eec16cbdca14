// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/pilot-protocol/pilot/coordinator/relayserver"
)

// RelayMetrics returns the handler of GET /metrics for what a relay has done. stats reports false where there is none. It
// names nobody.
func RelayMetrics(stats func() (relayserver.Stats, bool)) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(newRelayCollector(stats))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{})
}

type relayCollector struct {
	stats                                                            func() (relayserver.Stats, bool)
	clients, connections, refused, datagrams, bytes, requests, drops *prometheus.Desc
}

func newRelayCollector(stats func() (relayserver.Stats, bool)) *relayCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("pilot_relay_server_"+name, help, labels, nil)
	}
	return &relayCollector{
		stats:       stats,
		clients:     desc("clients", "Agents that are connected to the relay on this host."),
		connections: desc("connections_total", "Connections that the relay welcomed."),
		refused:     desc("refused_total", "Connections that the relay refused."),
		datagrams:   desc("datagrams_total", "Datagrams that the relay forwarded."),
		bytes:       desc("bytes_total", "Bytes of those, with what stands before them."),
		requests:    desc("stun_requests_total", "STUN binding requests that the relay answered."),
		drops:       desc("drops_total", "Datagrams that the relay dropped.", "reason"),
	}
}

// Describe sends all descriptions.
func (c *relayCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.clients, c.connections, c.refused, c.datagrams, c.bytes, c.requests, c.drops} {
		ch <- d
	}
}

// Collect reads the relay's counters.
func (c *relayCollector) Collect(ch chan<- prometheus.Metric) {
	s, ok := c.stats()
	if !ok {
		return
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	ch <- prometheus.MustNewConstMetric(c.clients, prometheus.GaugeValue, float64(s.Clients))
	count(c.connections, s.Connections)
	count(c.refused, s.Refused)
	count(c.datagrams, s.Datagrams)
	count(c.bytes, s.Bytes)
	count(c.requests, s.STUN)
	for reason, v := range s.Drops {
		count(c.drops, v, reason)
	}
}
