// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
)

const (
	// networkSettle is how long changes are gathered before they are told as one: a moved interface makes dozens.
	networkSettle = 200 * time.Millisecond
	// networkRetry is the pause before the kernel is asked again after it had more to tell than the socket could hold.
	networkRetry = time.Second
)

// networkEvents is one subscription to the kernel's changes of addresses, routes and links.
type networkEvents struct {
	done   chan struct{}
	addrs  chan netlink.AddrUpdate
	routes chan netlink.RouteUpdate
	links  chan netlink.LinkUpdate
}

func subscribe() (*networkEvents, error) {
	e := &networkEvents{
		done:  make(chan struct{}),
		addrs: make(chan netlink.AddrUpdate), routes: make(chan netlink.RouteUpdate), links: make(chan netlink.LinkUpdate),
	}
	if err := netlink.AddrSubscribe(e.addrs, e.done); err != nil {
		return nil, fmt.Errorf("watch addresses: %w", err)
	}
	if err := netlink.RouteSubscribe(e.routes, e.done); err != nil {
		close(e.done)
		drainUntilClosed(e.addrs)
		return nil, fmt.Errorf("watch routes: %w", err)
	}
	if err := netlink.LinkSubscribe(e.links, e.done); err != nil {
		close(e.done)
		drainUntilClosed(e.addrs)
		drainUntilClosed(e.routes)
		return nil, fmt.Errorf("watch links: %w", err)
	}
	return e, nil
}

// close ends the subscription, and returns when the library's goroutines send no more.
func (e *networkEvents) close() {
	close(e.done)
	drainUntilClosed(e.addrs)
	drainUntilClosed(e.routes)
	drainUntilClosed(e.links)
}

func drainUntilClosed[T any](c <-chan T) {
	for range c {
	}
}

// next waits for a change. It reports false when the subscription broke or ctx ended.
func (e *networkEvents) next(ctx context.Context) (ok bool) {
	select {
	case <-ctx.Done():
		return false
	case _, ok = <-e.addrs:
	case _, ok = <-e.routes:
	case _, ok = <-e.links:
	}
	return ok
}

// WatchNetwork sends when this host's addresses, routes or links have changed, until ctx ends; then it closes the
// channel. Changes within 200 ms are one, and a change that nobody has taken yet stands for those after it.
func WatchNetwork(ctx context.Context) (<-chan struct{}, error) {
	events, err := subscribe()
	if err != nil {
		return nil, err
	}
	changes := make(chan struct{}, 1)
	go func() {
		defer close(changes)
		for events != nil {
			watchOnce(ctx, events, changes)
			events.close()
			if events = resubscribe(ctx); events != nil {
				announce(changes) // something may have been missed
			}
		}
	}()
	return changes, nil
}

// watchOnce announces changes until the subscription breaks or ctx ends.
func watchOnce(ctx context.Context, events *networkEvents, changes chan<- struct{}) {
	for events.next(ctx) {
		settle, cancel := context.WithTimeout(ctx, networkSettle)
		for events.next(settle) {
		}
		cancel()
		if ctx.Err() != nil {
			return
		}
		announce(changes)
	}
}

func announce(changes chan<- struct{}) {
	select {
	case changes <- struct{}{}:
	default:
	}
}

func resubscribe(ctx context.Context) *networkEvents {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(networkRetry):
		}
		if events, err := subscribe(); err == nil {
			return events
		}
	}
	return nil
}
