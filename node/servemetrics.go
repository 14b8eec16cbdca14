// SPDX-License-Identifier: Apache-2.0

package node

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// serveCollector counts what goes over published ports.
type serveCollector struct {
	status                                                 func() []localapi.Served
	active, connections, refused, failed, rxBytes, txBytes *prometheus.Desc
}

func newServeCollector(status func() []localapi.Served) *serveCollector {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("pilot_served_"+name, help, []string{"protocol", "port"}, nil)
	}
	return &serveCollector{
		status:      status,
		active:      desc("connections", "Connections to a published port; for udp peers' ports."),
		connections: desc("connections_total", "Connections to a published port so far."),
		refused:     desc("refused_total", "Connections and requests that were refused: too many, or it could not be told whose."),
		failed:      desc("failures_total", "Connections that the program behind the port did not accept."),
		rxBytes:     desc("receive_bytes_total", "Bytes from peers."),
		txBytes:     desc("transmit_bytes_total", "Bytes to peers."),
	}
}

// Describe sends all descriptions.
func (c *serveCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.active, c.connections, c.refused, c.failed, c.rxBytes, c.txBytes} {
		ch <- d
	}
}

// Collect reads the counters.
func (c *serveCollector) Collect(ch chan<- prometheus.Metric) {
	for _, s := range c.status() {
		send := func(d *prometheus.Desc, kind prometheus.ValueType, v float64) {
			ch <- prometheus.MustNewConstMetric(d, kind, v, s.Protocol, strconv.Itoa(int(s.Port)))
		}
		send(c.active, prometheus.GaugeValue, float64(s.Active))
		send(c.connections, prometheus.CounterValue, float64(s.Connections))
		send(c.refused, prometheus.CounterValue, float64(s.Refused))
		send(c.failed, prometheus.CounterValue, float64(s.Failed))
		send(c.rxBytes, prometheus.CounterValue, float64(s.RxBytes))
		send(c.txBytes, prometheus.CounterValue, float64(s.TxBytes))
	}
}

// servedPortsNow is what is published, for the metrics.
func (n *Node) servedPortsNow() []localapi.Served {
	m, err := n.current()
	if err != nil {
		return nil
	}
	return m.served.Status()
}
