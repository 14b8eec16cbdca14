// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Options{Dir: dir, Prefix: "pilot-test", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sync.OnceFunc(s.Close))
	return s
}

func want(t *testing.T, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Errorf("got %v, want %v", err, target)
	}
}

func TestBucket(t *testing.T) {
	ctx, b := t.Context(), open(t, t.TempDir()).Agents
	_, err := b.Get(ctx, "a.b")
	want(t, err, ErrNotFound)
	want(t, b.Create(ctx, "a.b", []byte("1")), nil)
	want(t, b.Create(ctx, "a.b", []byte("2")), ErrConflict)
	e, err := b.Get(ctx, "a.b")
	want(t, err, nil)
	if string(e.Value) != "1" {
		t.Errorf("%s", e.Value)
	}
	want(t, b.Update(ctx, "a.b", []byte("3"), e.Revision), nil)
	want(t, b.Update(ctx, "a.b", []byte("4"), e.Revision), ErrConflict)
	want(t, b.Delete(ctx, "a.b", e.Revision), ErrConflict)
	e, err = b.Get(ctx, "a.b")
	want(t, err, nil)
	want(t, b.Delete(ctx, "a.b", e.Revision), nil)
	_, err = b.Get(ctx, "a.b")
	want(t, err, ErrNotFound)
	want(t, b.Create(ctx, "a.b", []byte("5")), nil)
	want(t, b.Put(ctx, "c.b", []byte("6")), nil)
	for filter, n := range map[string]int{"a.*": 1, "*.b": 2, "x.*": 0, "*.*": 2} {
		list, err := b.List(ctx, filter)
		want(t, err, nil)
		if len(list) != n {
			t.Errorf("%s: %v", filter, list)
		}
	}
	want(t, b.Put(ctx, "bad key", nil), ErrUnavailable)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, err = b.List(ended, "*.*")
	want(t, err, context.Canceled)
}

func TestOneOfManyWins(t *testing.T) {
	b := open(t, t.TempDir()).Bindings
	var wg sync.WaitGroup
	errs := make([]error, 50)
	for i := range errs {
		wg.Go(func() { errs[i] = b.Create(t.Context(), "name", []byte{byte(i)}) })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else {
			want(t, err, ErrConflict)
		}
	}
	if won != 1 {
		t.Errorf("%d won", won)
	}
}

func TestWatch(t *testing.T) {
	b := open(t, t.TempDir()).Consents
	want(t, b.Put(t.Context(), "before", []byte("0")), nil)
	ctx, cancel := context.WithCancel(t.Context())
	started, changes, ended := make(chan struct{}), make(chan Change, 10), make(chan error, 1)
	go func() { ended <- b.Watch(ctx, func() { close(started) }, func(c Change) { changes <- c }) }()
	<-started
	want(t, b.Put(t.Context(), "k", []byte("1")), nil)
	if c := <-changes; c.Key != "k" || string(c.Value) != "1" || c.Gone {
		t.Errorf("%+v", c)
	}
	e, err := b.Get(t.Context(), "k")
	want(t, err, nil)
	want(t, b.Delete(t.Context(), "k", e.Revision), nil)
	if c := <-changes; c.Key != "k" || !c.Gone {
		t.Errorf("%+v", c)
	}
	cancel()
	want(t, <-ended, context.Canceled)
}

func TestReopenKeepsWhatWasAnswered(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	want(t, s.Agents.Put(t.Context(), "k", []byte("1")), nil)
	want(t, s.Presence.Put(t.Context(), "k", []byte("1")), nil)
	want(t, s.Audit(t.Context(), "join", map[string]string{"who": "me"}), nil)
	s.Close()
	s = open(t, dir)
	if e, err := s.Agents.Get(t.Context(), "k"); err != nil || string(e.Value) != "1" {
		t.Errorf("%s, %v", e.Value, err)
	}
	_, err := s.Presence.Get(t.Context(), "k")
	want(t, err, ErrNotFound)
	want(t, s.Audit(t.Context(), "revoke", 2), nil)
	trail, err := s.AuditTrail(t.Context(), 10)
	want(t, err, nil)
	if len(trail) != 2 || string(trail[0]) != `{"who":"me"}` || string(trail[1]) != "2" {
		t.Errorf("%s", trail)
	}
	stream, err := s.js.Stream(t.Context(), "pilot-test_audit")
	want(t, err, nil)
	if stream.Purge(t.Context()) == nil || stream.DeleteMsg(t.Context(), 1) == nil {
		t.Error("the audit trail can be cut")
	}
}

func TestPublish(t *testing.T) {
	s := open(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	started, ended := make(chan struct{}), make(chan error, 1)
	type message struct{ subject, data string }
	heard := make(chan message, 10)
	want(t, s.Publish("x.early", []byte("nobody listens")), nil)
	go func() {
		ended <- s.Subscribe(ctx, "x.*", func() { close(started) }, func(subject string, data []byte) { heard <- message{subject, string(data)} })
	}()
	<-started
	want(t, s.Publish("y.a", []byte("0")), nil)
	want(t, s.Publish("x.a", []byte("1")), nil)
	if m := <-heard; m != (message{"x.a", "1"}) {
		t.Errorf("%+v", m)
	}
	cancel()
	want(t, <-ended, context.Canceled)
	s.Close()
	want(t, s.Publish("x.a", nil), ErrUnavailable)
}

// A registry of an earlier version lets entries live for a shorter time than they are now put again.
func TestPresenceIsLengthened(t *testing.T) {
	s := open(t, t.TempDir())
	short := jetstream.KeyValueConfig{Bucket: "short", TTL: time.Minute / 2, LimitMarkerTTL: time.Minute / 2, Storage: jetstream.MemoryStorage}
	_, err := s.js.CreateKeyValue(t.Context(), short)
	want(t, err, nil)
	short.TTL, short.LimitMarkerTTL = PresenceLife, PresenceLife
	for range 2 {
		want(t, s.lengthen(t.Context(), short), nil)
	}
	stream, err := s.js.Stream(t.Context(), "KV_short")
	want(t, err, nil)
	if c := stream.CachedInfo().Config; c.MaxAge != PresenceLife || c.SubjectDeleteMarkerTTL != PresenceLife {
		t.Errorf("%v, %v", c.MaxAge, c.SubjectDeleteMarkerTTL)
	}
}

func TestOpenFails(t *testing.T) {
	_, err := Open(t.Context(), Options{URL: "nats://127.0.0.1:1", Prefix: "p", Log: slog.New(slog.DiscardHandler)})
	if !errors.Is(err, ErrUnavailable) {
		t.Errorf("opened without a server: %v", err)
	}
}

func BenchmarkSyncedPut(b *testing.B) {
	s := open(b, b.TempDir())
	value := make([]byte, 1024)
	for b.Loop() {
		if err := s.Agents.Put(b.Context(), "k", value); err != nil {
			b.Fatal(err)
		}
	}
}
