// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"
)

// waitingMessages is how many messages wait for a subscriber; more are lost.
const waitingMessages = 1024

// Publish passes data to those who subscribe to the subject now, in all processes that share the NATS. It is not stored.
// A subject is words like those of a key.
func (s *Store) Publish(subject string, data []byte) error {
	if err := s.conn.Publish(s.prefix+"."+subject, data); err != nil {
		return fmt.Errorf("%w: passing on a message: %w", ErrUnavailable, err)
	}
	return nil
}

// Subscribe calls started once it will miss nothing any more, then heard for each message whose subject matches the
// filter, until the context ends. It survives a NATS that goes away and comes back. What comes faster than heard returns may be lost.
func (s *Store) Subscribe(ctx context.Context, filter string, started func(), heard func(subject string, data []byte)) error {
	messages := make(chan *nats.Msg, waitingMessages)
	sub, err := s.conn.ChanSubscribe(s.prefix+"."+filter, messages)
	if err != nil {
		return fmt.Errorf("store: subscribing to %s: %w", filter, convert(err))
	}
	defer func() { _ = sub.Unsubscribe() }() // it only fails on a connection that has ended
	flush, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if err := s.conn.FlushWithContext(flush); err != nil {
		return fmt.Errorf("store: subscribing to %s: %w", filter, convert(err))
	}
	started()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m := <-messages:
			heard(strings.TrimPrefix(m.Subject, s.prefix+"."), m.Data)
		}
	}
}
