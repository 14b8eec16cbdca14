// SPDX-License-Identifier: Apache-2.0

// Package store keeps the coordinator's registry in NATS JetStream: in a server inside this process, which writes to disk
// before it answers, or in an existing one. A store holds nothing of its own, so that any number of coordinators can
// share a NATS; a change that must not collide with another is made with Create or Update, which compare revisions.
package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// PresenceLife is how long an entry in Presence lives after its last Put: three times the interval of the puts.
const PresenceLife = 135 * time.Second

const (
	startLimit = 30 * time.Second
)

var (
	// ErrNotFound is returned for a key that isn't there.
	ErrNotFound = errors.New("store: not found")
	// ErrConflict is returned by Create, Update and Delete when somebody else was faster.
	ErrConflict = errors.New("store: changed by somebody else")
	// ErrUnavailable is returned when NATS can't be reached or has failed.
	ErrUnavailable = errors.New("store: NATS doesn't answer as it should")
	// ErrJetStream is returned by Open when the NATS server has no JetStream.
	ErrJetStream = errors.New("store: JetStream isn't enabled on the NATS server")
)

// Options say where the registry is.
type Options struct {
	// URL of an existing NATS (2.11 or newer, with JetStream); several, separated by commas, for a cluster. Empty: a server in this process.
	URL string
	// Dir is the folder of the server in this process.
	Dir string
	// Prefix of all buckets, so that networks can share a NATS: letters, digits and '-'.
	Prefix string
	Log    *slog.Logger
}

// Store is an open registry. It is safe for concurrent use.
type Store struct {
	// Network holds what concerns the whole network.
	Network *Bucket
	// Agents holds the members, Bindings their names and addresses, Seen when and where from they came last.
	Agents, Bindings, Seen *Bucket
	// Invites holds the join keys, Acceptances who joined by which.
	Invites, Acceptances *Bucket
	// Consents holds the latest consent of each pair of agents.
	Consents *Bucket
	// Presence holds what is up now: each entry ends PresenceLife after it was put.
	Presence *Bucket

	prefix string
	server *server.Server
	conn   *nats.Conn
	js     jetstream.JetStream
}

// Open starts or finds the NATS and makes what is missing in it. Close ends what Open started.
func Open(ctx context.Context, o Options) (*Store, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	s := &Store{prefix: o.Prefix}
	if err := s.connect(o); err != nil {
		s.Close()
		return nil, err
	}
	if err := s.prepare(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Store) connect(o Options) (err error) {
	options := []nats.Option{
		nats.Name("pilot coordinator"), nats.MaxReconnects(-1), nats.Timeout(10 * time.Second), nats.ReconnectWait(500 * time.Millisecond),
		nats.ReconnectBufSize(-1), // while NATS is away a request fails at once, and can go to another coordinator
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { o.Log.Warn("registry connection", "error", err) }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				o.Log.Warn("registry connection lost", "error", err)
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) { o.Log.Info("registry connection is back") }),
	}
	if o.URL == "" {
		if s.server, err = startEmbedded(o); err != nil {
			return err
		}
		options = append(options, nats.InProcessServer(s.server))
	}
	if s.conn, err = nats.Connect(o.URL, options...); err != nil {
		return fmt.Errorf("%w: connecting: %w", ErrUnavailable, err)
	}
	s.js, err = jetstream.New(s.conn)
	return err
}

func (s *Store) prepare(ctx context.Context) error {
	_, err := s.js.AccountInfo(ctx)
	switch {
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount),
		errors.Is(err, nats.ErrNoResponders):
		return ErrJetStream
	case err != nil:
		return fmt.Errorf("store: asking NATS for JetStream: %w", err)
	}
	for _, b := range []struct {
		name   string
		bucket **Bucket
	}{
		{"network", &s.Network}, {"agents", &s.Agents}, {"bindings", &s.Bindings}, {"seen", &s.Seen}, {"invites", &s.Invites},
		{"acceptances", &s.Acceptances}, {"consents", &s.Consents},
	} {
		if *b.bucket, err = s.open(ctx, jetstream.KeyValueConfig{Bucket: s.prefix + "_" + b.name, History: 1}); err != nil {
			return err
		}
	}
	presence := jetstream.KeyValueConfig{
		Bucket: s.prefix + "_presence", History: 1, TTL: PresenceLife, LimitMarkerTTL: PresenceLife,
	}
	if s.server != nil {
		// Its life is that of this process. In another NATS it must outlive a restart, because only Open makes buckets.
		presence.Storage = jetstream.MemoryStorage
	}
	if s.Presence, err = s.open(ctx, presence); err != nil {
		return err
	}
	if err := s.lengthen(ctx, presence); err != nil {
		return err
	}
	return s.openAudit(ctx)
}

// open returns the bucket and makes it if it is missing. An existing one keeps its settings, which an operator may have changed.
func (s *Store) open(ctx context.Context, conf jetstream.KeyValueConfig) (*Bucket, error) {
	kv, err := s.js.KeyValue(ctx, conf.Bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		kv, err = s.create(ctx, conf)
	}
	if err != nil {
		return nil, fmt.Errorf("store: opening %s: %w", conf.Bucket, err)
	}
	return &Bucket{kv: kv}, nil
}

func (s *Store) create(ctx context.Context, conf jetstream.KeyValueConfig) (jetstream.KeyValue, error) {
	conf.Replicas = s.replicas()
	if _, err := s.js.CreateKeyValue(ctx, conf); err != nil && !errors.Is(err, jetstream.ErrBucketExists) {
		return nil, err
	}
	// In a cluster a direct read may be answered by a replica that is behind. Here a read must see the last revocation.
	stream, err := s.js.Stream(ctx, "KV_"+conf.Bucket)
	if err != nil {
		return nil, err
	}
	sc := stream.CachedInfo().Config
	sc.AllowDirect = false
	if _, err := s.js.UpdateStream(ctx, sc); err != nil {
		return nil, err
	}
	return s.js.KeyValue(ctx, conf.Bucket)
}

// lengthen gives the entries of a bucket that an earlier version made the life that they need now: they are put less often.
func (s *Store) lengthen(ctx context.Context, conf jetstream.KeyValueConfig) error {
	stream, err := s.js.Stream(ctx, "KV_"+conf.Bucket)
	if err != nil {
		return fmt.Errorf("store: opening %s: %w", conf.Bucket, err)
	}
	sc := stream.CachedInfo().Config
	if sc.MaxAge == 0 || sc.MaxAge >= conf.TTL {
		return nil
	}
	sc.MaxAge, sc.SubjectDeleteMarkerTTL = conf.TTL, conf.LimitMarkerTTL
	if _, err := s.js.UpdateStream(ctx, sc); err != nil {
		return fmt.Errorf("store: changing %s: %w", conf.Bucket, err)
	}
	return nil
}

// replicas of a new bucket: three where NATS is a cluster.
func (s *Store) replicas() int {
	if s.server == nil && s.conn.ConnectedClusterName() != "" {
		return 3
	}
	return 1
}

// openAudit makes the audit trail: a stream that only grows, out of which nobody can delete a message.
func (s *Store) openAudit(ctx context.Context) error {
	name := s.prefix + "_audit"
	_, err := s.js.Stream(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		_, err = s.js.CreateStream(ctx, jetstream.StreamConfig{
			Name: name, Subjects: []string{s.prefix + ".audit.*"}, Storage: jetstream.FileStorage, Replicas: s.replicas(),
			DenyDelete: true, DenyPurge: true,
		})
	}
	if err != nil && !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		return fmt.Errorf("store: opening the audit trail: %w", err)
	}
	return nil
}

// Audit appends an entry to the audit trail under a kind, a single word, and returns when it is stored.
func (s *Store) Audit(ctx context.Context, kind string, entry any) error {
	data, err := json.Marshal(entry)
	if err != nil {
		return fmt.Errorf("store: writing the audit trail: %w", err)
	}
	if _, err := s.js.Publish(ctx, s.prefix+".audit."+kind, data); err != nil {
		return fmt.Errorf("%w: writing the audit trail: %w", ErrUnavailable, err)
	}
	return nil
}

// AuditTrail returns the entries from the first on, at most limit of them.
func (s *Store) AuditTrail(ctx context.Context, limit int) ([]json.RawMessage, error) {
	c, err := s.js.OrderedConsumer(ctx, s.prefix+"_audit", jetstream.OrderedConsumerConfig{InactiveThreshold: time.Minute})
	if err != nil {
		return nil, fmt.Errorf("store: reading the audit trail: %w", err)
	}
	batch, err := c.FetchNoWait(limit)
	if err != nil {
		return nil, fmt.Errorf("store: reading the audit trail: %w", err)
	}
	var entries []json.RawMessage
	for m := range batch.Messages() {
		entries = append(entries, m.Data())
	}
	return entries, batch.Error()
}

// Close ends the connection and the server in this process, and returns when its files are closed.
func (s *Store) Close() {
	if s.conn != nil {
		s.conn.Close()
	}
	if s.server != nil {
		s.server.Shutdown()
		s.server.WaitForShutdown()
	}
}
