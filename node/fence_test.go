// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/tun"
)

// Where there can be no fence the network comes up all the same, and says what that means.
func TestUnfencedIsSaid(t *testing.T) {
	fence := &memoryFence{failure: errors.New("no nf_tables")}
	d := startDaemonOn(t, stateDir(t), &memorySystem{fence: fence})
	up, err := d.Up(t.Context(), localapi.UpRequest{CoordinatorListen: listenLoopback})
	if err != nil || len(up.Warnings) != 1 || !strings.Contains(up.Warnings[0], "no nf_tables") {
		t.Errorf("up: %q, %v", up.Warnings, err)
	}
	s, err := d.Status(t.Context())
	if err != nil || s.Drops[dropPast] != 7 {
		t.Errorf("dropped: %v, %v", s.Drops, err)
	}
	said := false
	for _, p := range s.Problems {
		said = said || p.Code == localapi.CodeUnfenced && strings.Contains(p.Message, "no nf_tables") && strings.Contains(p.Hint, s.Self.Interface)
	}
	if !said {
		t.Errorf("not among the problems: %+v", s.Problems)
	}
	if _, err := d.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.end()
	if !fence.closed {
		t.Error("the fence stays when the network is down")
	}
}

// The fence is looked at all the time, and what that comes to is told once.
func TestFenceIsWatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, fence := &lockedBuffer{}, &memoryFence{}
		e := &engine{device: tun.NewMemory("mem0", mtu), fence: fence, log: slog.New(slog.NewTextHandler(log, nil))}
		defer e.device.Close()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- e.watchFence(ctx) }()
		look := func(failure error) (unfenced bool) {
			fence.fail(failure)
			time.Sleep(3 * fenceInterval) // of the time in this bubble
			synctest.Wait()
			return e.unfenced.Load() != nil
		}
		if look(nil) || !look(errors.New("taken away")) || look(nil) {
			t.Errorf("what is told of the fence isn't so:\n%s", log)
		}
		if n := strings.Count(log.String(), "\n"); n != 2 {
			t.Errorf("%d lines in the log instead of 2:\n%s", n, log)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// An engine without a fence has nothing to watch, count or close.
func TestNoFence(t *testing.T) {
	e := &engine{}
	drops := map[string]uint64{}
	e.refreshFence()
	e.addFenced(drops)
	if err := errors.Join(e.watchFence(t.Context()), e.closeFence()); err != nil || len(drops) != 0 {
		t.Errorf("%v, %v", drops, err)
	}
}
