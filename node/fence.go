// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"time"
)

// fenceInterval is how often the fence of the interface is looked at: a firewall may have taken it away, or what it needs may
// have come.
const fenceInterval = 5 * time.Second

// watchFence keeps the fence up until ctx ends.
func (e *engine) watchFence(ctx context.Context) error {
	if e.fence == nil {
		return nil
	}
	t := time.NewTicker(fenceInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			e.refreshFence()
		}
	}
}

// refreshFence puts the fence up if it isn't there, and notes whether that works.
func (e *engine) refreshFence() {
	if e.fence == nil {
		return
	}
	again, err := e.fence.Refresh()
	switch before := e.unfenced.Load(); {
	case err != nil:
		text := err.Error()
		if before == nil || *before != text {
			e.log.Warn("packets that come past the tunnel are not kept out", "interface", e.device.Name(), "error", err)
		}
		e.unfenced.Store(&text)
	case before != nil:
		e.log.Info("packets that come past the tunnel are kept out now", "interface", e.device.Name())
		e.unfenced.Store(nil)
	case again:
		e.log.Info("somebody took the table of nf_tables away; it is there again", "table", e.device.Name())
	}
}

// dropPast is the reason under which what the fence kept out is counted.
const dropPast = "past-tunnel"

// addFenced adds what the fence kept out to the drops by reason.
func (e *engine) addFenced(drops map[string]uint64) {
	if e.fence == nil || drops == nil {
		return
	}
	n, err := e.fence.Dropped()
	if err != nil {
		e.log.Debug("what the fence dropped is not known", "error", err)
		return
	}
	if n > 0 {
		drops[dropPast] = n
	}
}

// closeFence comes after the interface is closed.
func (e *engine) closeFence() error {
	if e.fence == nil {
		return nil
	}
	return e.fence.Close()
}
