// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"context"
	"net/http"
	"net/netip"
	"net/url"

	"github.com/pilot-protocol/pilot/identity"
)

// LocalRequest asks for one more agent in the daemon, with a key, a name, an address and a trust of its own.
type LocalRequest struct {
	Name    string `json:"name"`
	Invite  string `json:"invite,omitempty"`   // secret; empty: the daemon's own agent makes one, if it may
	NoTrust bool   `json:"no_trust,omitempty"` // without Invite: don't let the two trust each other
	// SOCKS5 and HTTPProxy are where its proxies listen, on loopback; port 0 chooses one; empty: there is none.
	SOCKS5    string `json:"socks5,omitempty"`
	HTTPProxy string `json:"http_proxy,omitempty"`
}

// LocalAgent is an agent of the daemon's besides its own.
type LocalAgent struct {
	Name     string               `json:"name"`
	State    string               `json:"state"`
	Owner    uint32               `json:"owner"` // the user id of those who may act as it, besides root; 0 on Windows
	FQDN     string               `json:"fqdn,omitempty"`
	Address  netip.Addr           `json:"address,omitzero"`
	Key      identity.AgentPublic `json:"key,omitzero"`
	Peers    int                  `json:"peers"` // with whom there is mutual trust
	Sessions int                  `json:"sessions"`
	RxBytes  uint64               `json:"rx_bytes"`
	TxBytes  uint64               `json:"tx_bytes"`
	Error    *Problem             `json:"error,omitempty"` // why it is not up
}

// LocalList is the answer to local, by name.
type LocalList struct {
	Agents []LocalAgent `json:"agents"`
}

// Locals lists the daemon's agents besides its own.
func (c *Client) Locals(ctx context.Context) (LocalList, error) {
	return call[LocalList](ctx, c, http.MethodGet, "/v1/local", nil)
}

// AddLocal makes one.
func (c *Client) AddLocal(ctx context.Context, r LocalRequest) (LocalAgent, error) {
	return call[LocalAgent](ctx, c, http.MethodPost, "/v1/local", r)
}

// RemoveLocal ends one for good.
func (c *Client) RemoveLocal(ctx context.Context, name string) (LocalAgent, error) {
	return call[LocalAgent](ctx, c, http.MethodDelete, "/v1/local/"+url.PathEscape(name), nil)
}
