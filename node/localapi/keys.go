// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"context"
	"net/http"
)

// Where keys are.
const (
	KeysInFile   = "file"   // as they are, in a file of mode 0600
	KeysInSystem = "system" // in a request: sealed by what the system offers
)

// KeyPlace is where one secret is.
type KeyPlace struct {
	File    string `json:"file"`    // in the state folder
	In      string `json:"in"`      // file, or what sealed it: systemd-creds, keychain, dpapi
	Movable bool   `json:"movable"` // pilot keys move takes it along
}

// KeysStatus is what `pilot keys` shows.
type KeysStatus struct {
	Keys      []KeyPlace `json:"keys"`
	System    string     `json:"system,omitempty"`     // what the system offers
	SystemWhy string     `json:"system_why,omitempty"` // why it offers nothing
}

// KeysMove says where the keys shall be: KeysInFile or KeysInSystem.
type KeysMove struct {
	To string `json:"to"`
}

// KeyKeeper keeps the keys of a node.
type KeyKeeper interface {
	Keys(context.Context) (KeysStatus, error)
	MoveKeys(context.Context, KeysMove) (KeysStatus, error)
}

// Keys asks where the keys are.
func (c *Client) Keys(ctx context.Context) (KeysStatus, error) {
	return call[KeysStatus](ctx, c, http.MethodGet, "/v1/keys", nil)
}

// MoveKeys moves them.
func (c *Client) MoveKeys(ctx context.Context, r KeysMove) (KeysStatus, error) {
	return call[KeysStatus](ctx, c, http.MethodPost, "/v1/keys", r)
}
