// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"context"
	"net/http"
)

// Protocols of a published port.
const (
	ServeTCP  = "tcp"
	ServeUDP  = "udp"
	ServeHTTP = "http" // over TCP, with headers that say who asks
)

// Actions of a ServeRequest.
const (
	ActionPublish = "publish"
	ActionRemove  = "remove"
)

// ServeRequest publishes a port of this host under the agent's address, in place of what is there under the same port and
// protocol, or takes it back.
type ServeRequest struct {
	Action   string `json:"action"`             // publish or remove
	Protocol string `json:"protocol,omitempty"` // tcp, udp or http; empty: tcp, to remove all that the port has
	Port     uint16 `json:"port"`               // of the agent's address
	Target   string `json:"target,omitempty"`   // host:port or unix:/path; empty: 127.0.0.1 and the same port
}

// Served is a port that is published, with what went over it since the daemon's start or since it was published.
type Served struct {
	Protocol    string   `json:"protocol"` // tcp, udp or http
	Port        uint16   `json:"port"`
	Target      string   `json:"target"`
	Active      int      `json:"active"`            // connections now; for udp peers' ports
	Connections uint64   `json:"connections"`       // so far
	Refused     uint64   `json:"refused"`           // because there were too many, or the caller could not be told
	Failed      uint64   `json:"failed"`            // the target did not answer
	RxBytes     uint64   `json:"rx_bytes"`          // from peers
	TxBytes     uint64   `json:"tx_bytes"`          // to peers
	Problem     *Problem `json:"problem,omitempty"` // why nobody reaches it now
}

// ServeList is what is published.
type ServeList struct {
	Served []Served `json:"served"`
}

// Publisher publishes ports.
type Publisher interface {
	// Serve returns what was published or removed. Who asks is to be found out by CallerConn.
	Serve(context.Context, ServeRequest) (ServeList, error)
	ServeList(context.Context) (ServeList, error)
}

// Serve publishes a port or takes it back; the list has what the request was about.
func (c *Client) Serve(ctx context.Context, r ServeRequest) (ServeList, error) {
	return call[ServeList](ctx, c, http.MethodPost, "/v1/serve", r)
}

// ServeList lists what is published.
func (c *Client) ServeList(ctx context.Context) (ServeList, error) {
	return call[ServeList](ctx, c, http.MethodGet, "/v1/serve", nil)
}
