// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/pilot-protocol/pilot/coordinator/relayserver"
	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/overlay"
	"github.com/pilot-protocol/pilot/underlay"
)

// metrics returns the handler of GET /metrics. Counters are read when somebody asks, so that the data path keeps none twice.
func (n *Node) metrics() http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(newNodeCollector(n), collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), newRelayCollector(n.relayed), newServeCollector(n.servedPortsNow))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{})
}

// relayed is what the coordinator in this process has done as a relay.
func (n *Node) relayed() (relayserver.Stats, bool) {
	if c := n.served.Load(); c != nil {
		return c.Relay()
	}
	return relayserver.Stats{}, false
}

type nodeCollector struct {
	node                                                  *Node
	up, connected, pending, expires                       *prometheus.Desc
	sessions, rxBytes, txBytes, rxPackets, txPackets, rtt *prometheus.Desc
	drops, direct, relay, relayRTT                        *prometheus.Desc
}

func newNodeCollector(n *Node) *nodeCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("pilot_"+name, help, labels, nil)
	}
	return &nodeCollector{
		node:      n,
		up:        desc("up", "1 while the network is up."),
		connected: desc("coordinator_connected", "1 while the coordinator is reachable."),
		pending:   desc("trust_pending", "Trust requests that wait for a decision."),
		expires:   desc("certificate_expires_seconds", "When this agent's certificate ends, seconds since 1970."),
		sessions:  desc("sessions", "Open sessions, older ones included."),
		rxBytes:   desc("peer_receive_bytes_total", "Bytes of inner packets received.", "peer"),
		txBytes:   desc("peer_transmit_bytes_total", "Bytes of inner packets sent.", "peer"),
		rxPackets: desc("peer_receive_packets_total", "Inner packets received.", "peer"),
		txPackets: desc("peer_transmit_packets_total", "Inner packets sent.", "peer"),
		rtt:       desc("peer_rtt_seconds", "Last measured round trip; absent if never measured.", "peer"),
		direct:    desc("peer_direct", "1 while the session with the peer takes a direct path, 0 over a relay; absent without one.", "peer"),
		relay:     desc("relay_connected", "1 while the relay forwards for this node; home is true at the one where peers find it.", "relay", "home", "transport"),
		relayRTT:  desc("relay_rtt_seconds", "Round trip to the relay; absent if never measured.", "relay"),
		drops:     desc("drops_total", "Packets, records and handshakes dropped.", "reason"),
	}
}

// Describe sends all descriptions.
func (c *nodeCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		c.up, c.connected, c.pending, c.expires, c.sessions, c.rxBytes, c.txBytes, c.rxPackets, c.txPackets, c.rtt, c.drops,
		c.direct, c.relay, c.relayRTT,
	} {
		ch <- d
	}
}

// Collect reads the node's counters.
func (c *nodeCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	var s overlay.Status
	var relays []underlay.RelayStatus
	var self identity.AgentPublic
	names := map[identity.AgentPublic]string{}
	err := c.node.view(func(m *membership) error {
		s, relays = m.engine.overlay.Status(), m.engine.underlay.Status().Relays
		m.engine.addFenced(s.Drops)
		pending := 0
		self = m.book.self
		for agent, p := range m.book.peers {
			names[agent] = p.certificate.Name
			if m.book.trust(agent, c.node.now()) == "pending" {
				pending++
			}
		}
		gauge(c.connected, float64(b2i(m.link.connected)))
		gauge(c.pending, float64(pending))
		gauge(c.expires, float64(m.book.certificate.NotAfter.Unix()))
		return nil
	})
	gauge(c.up, float64(b2i(err == nil)))
	if err != nil {
		return
	}
	gauge(c.sessions, float64(s.Sessions))
	for _, r := range relays {
		if r.Connected {
			gauge(c.relay, 1, r.Name, strconv.FormatBool(r.Home), r.Transport)
		}
		if r.RTT > 0 {
			gauge(c.relayRTT, r.RTT.Seconds(), r.Name)
		}
	}
	for reason, v := range s.Drops {
		count(c.drops, v, reason)
	}
	for _, p := range s.Peers {
		if p.Local != self {
			continue
		}
		name := names[p.Agent]
		count(c.rxBytes, p.RxBytes, name)
		count(c.txBytes, p.TxBytes, name)
		count(c.rxPackets, p.RxPackets, name)
		count(c.txPackets, p.TxPackets, name)
		if p.RTT > 0 {
			gauge(c.rtt, p.RTT.Seconds(), name)
		}
		if p.State == overlay.StateUp {
			gauge(c.direct, float64(b2i(p.Path.Relay == 0)), name)
		}
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}
