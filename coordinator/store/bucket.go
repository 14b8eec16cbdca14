// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// Bucket is a set of keys with values. A key is words of letters, digits, '-' and '_', separated by dots; a filter may have '*' for a word.
type Bucket struct{ kv jetstream.KeyValue }

// Entry is a key with its value, and the revision for Update and Delete.
type Entry struct {
	Key      string
	Value    []byte
	Revision uint64
}

// Change is what a watcher sees. Gone is set when the key was deleted or has expired.
type Change struct {
	Key   string
	Value []byte
	Gone  bool
}

// Get returns the entry or ErrNotFound.
func (b *Bucket) Get(ctx context.Context, key string) (Entry, error) {
	e, err := b.kv.Get(ctx, key)
	if err != nil {
		return Entry{}, convert(err)
	}
	return Entry{Key: key, Value: e.Value(), Revision: e.Revision()}, nil
}

// Create stores the value where the key isn't there yet, or returns ErrConflict.
func (b *Bucket) Create(ctx context.Context, key string, value []byte) error {
	_, err := b.kv.Create(ctx, key, value)
	return convert(err)
}

// Update replaces the value if the revision is still the current one, or returns ErrConflict.
func (b *Bucket) Update(ctx context.Context, key string, value []byte, revision uint64) error {
	_, err := b.kv.Update(ctx, key, value, revision)
	return convert(err)
}

// Put stores the value whatever was there.
func (b *Bucket) Put(ctx context.Context, key string, value []byte) error {
	_, err := b.kv.Put(ctx, key, value)
	return convert(err)
}

// Delete removes the key if the revision is still the current one, or returns ErrConflict.
func (b *Bucket) Delete(ctx context.Context, key string, revision uint64) error {
	return convert(b.kv.Delete(ctx, key, jetstream.LastRevision(revision)))
}

// List returns the entries whose keys match the filter.
func (b *Bucket) List(ctx context.Context, filter string) ([]Entry, error) {
	w, err := b.kv.Watch(ctx, filter, jetstream.IgnoreDeletes())
	if err != nil {
		return nil, convert(err)
	}
	defer func() { _ = w.Stop() }() // it only fails on a connection that has ended
	var entries []Entry
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case e, ok := <-w.Updates():
			switch {
			case !ok:
				return nil, fmt.Errorf("%w: the connection ended during a listing", ErrUnavailable)
			case e == nil: // the end of what was there
				return entries, nil
			}
			entries = append(entries, Entry{Key: e.Key(), Value: e.Value(), Revision: e.Revision()})
		}
	}
}

// Watch calls started once it will miss no change any more, then changed for each change of any key, until the context
// ends or the connection is closed. It survives a NATS that goes away and comes back.
func (b *Bucket) Watch(ctx context.Context, started func(), changed func(Change)) error {
	w, err := b.kv.WatchAll(ctx, jetstream.UpdatesOnly())
	if err != nil {
		return fmt.Errorf("store: watching %s: %w", b.kv.Bucket(), convert(err))
	}
	defer func() { _ = w.Stop() }() // it only fails on a connection that has ended
	started()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e, ok := <-w.Updates():
			if !ok {
				return fmt.Errorf("store: watching %s: the connection to NATS ended", b.kv.Bucket())
			}
			if e != nil {
				changed(Change{Key: e.Key(), Value: e.Value(), Gone: e.Operation() != jetstream.KeyValuePut})
			}
		}
	}
}

func convert(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jetstream.ErrKeyNotFound), errors.Is(err, jetstream.ErrKeyDeleted):
		return ErrNotFound
	case errors.Is(err, jetstream.ErrKeyExists), errors.Is(err, jetstream.ErrKeyRevisionMismatch):
		return ErrConflict
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}
