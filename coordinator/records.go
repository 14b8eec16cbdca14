// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/coordinator/store"
	"github.com/pilot-protocol/pilot/identity"
)

// What the registry's buckets hold, as JSON. A key is the lower-case hex of the public keys that it names.

// networkRecord is the only entry of the bucket Network, under networkKey.
type networkRecord struct {
	Name      string                   `json:"name"`
	Authority identity.AuthorityPublic `json:"authority"`
	Created   time.Time                `json:"created"`
}

const networkKey = "network"

// agentRecord is a member. The latest serial and the revocation share an entry, so that no certificate can be issued
// beside a revocation.
type agentRecord struct {
	Name         string    `json:"name"`
	Tags         []string  `json:"tags,omitempty"`
	Jurisdiction string    `json:"jurisdiction,omitempty"`
	Serial       uint64    `json:"serial"`
	Certificate  []byte    `json:"certificate"`
	Tunnel       []byte    `json:"tunnel,omitempty"`
	Record       []byte    `json:"record,omitempty"`
	Joined       time.Time `json:"joined"`
	Revocation   []byte    `json:"revocation,omitempty"`
}

func (a agentRecord) revoked() bool { return len(a.Revocation) > 0 }
func (a agentRecord) admin() bool   { return slices.Contains(a.Tags, api.TagAdmin) }
func (a agentRecord) relay() bool   { return slices.Contains(a.Tags, api.TagRelay) }

// binding gives a name or an address to one agent.
type binding struct {
	Agent identity.AgentPublic `json:"agent"`
	Since time.Time            `json:"since"`
}

func nameKey(name string) string      { return "name." + name }
func relayNameKey(name string) string { return "relay." + name }
func addressKey(addr netip.Addr) string {
	b := addr.As16()
	return "address." + hex.EncodeToString(b[:])
}
func agentKey(a identity.AgentPublic) string { return hex.EncodeToString(a[:]) }
func joinKey(j identity.JoinPublic) string   { return hex.EncodeToString(j[:]) }

// inviteRecord is a join key. Used has the agents that it admitted, so that one that asks again uses it up no further.
type inviteRecord struct {
	Inviter      identity.AgentPublic   `json:"inviter,omitzero"` // zero: the operator
	Uses         int                    `json:"uses"`
	Created      time.Time              `json:"created"`
	Expires      time.Time              `json:"expires"`
	Tags         []string               `json:"tags,omitempty"`
	Jurisdiction string                 `json:"jurisdiction,omitempty"`
	Consent      []byte                 `json:"consent,omitempty"`
	Revoked      bool                   `json:"revoked,omitempty"`
	Used         []identity.AgentPublic `json:"used,omitempty"`
}

// acceptanceRecord says that an agent has joined; its key is acceptanceKey.
type acceptanceRecord struct {
	Acceptance []byte `json:"acceptance"`
}

func acceptanceKey(inviter identity.AgentPublic, join identity.JoinPublic, agent identity.AgentPublic) string {
	return agentKey(inviter) + "." + joinKey(join) + "." + agentKey(agent)
}

// consentRecord is the latest consent of a pair; its key is pairKey.
type consentRecord struct {
	Consent    []byte `json:"consent"`
	Acceptance []byte `json:"acceptance,omitempty"`
	Serial     uint64 `json:"serial"`
}

func pairKey(from, to identity.AgentPublic) string { return agentKey(from) + "." + agentKey(to) }

// seenRecord is when an agent's latest stream began or ended, and where from it came.
type seenRecord struct {
	At       time.Time    `json:"at"`
	Observed []netip.Addr `json:"observed,omitempty"` // newest first, at most maxObserved
}

// presenceRecord says which stream keeps the entry of an agent alive.
type presenceRecord struct {
	Stream string `json:"stream"`
}

// coordinatorRecord is a coordinator that is up.
type coordinatorRecord struct {
	Addresses []string `json:"addresses"`
}

// relayRecord is a relay that is up.
type relayRecord struct {
	Statement []byte `json:"statement"` // identity.RelayStatement
}

const (
	presenceAgent       = "agent."
	presenceCoordinator = "coordinator."
	presenceRelay       = "relay."
)

// parseKeys decodes the public keys of a registry key.
func parseKeys(key string, n int) ([]identity.AgentPublic, bool) {
	words := strings.Split(key, ".")
	if len(words) != n {
		return nil, false
	}
	keys := make([]identity.AgentPublic, n)
	for i, w := range words {
		if m, err := hex.Decode(keys[i][:], []byte(w[:min(len(w), 2*identity.KeySize)])); err != nil || m != identity.KeySize || len(w) != 2*identity.KeySize {
			return nil, false
		}
	}
	return keys, true
}

// read returns the entry and its revision, or store.ErrNotFound.
func read[T any](ctx context.Context, b *store.Bucket, key string) (v T, revision uint64, err error) {
	e, err := b.Get(ctx, key)
	if err != nil {
		return v, 0, err
	}
	if err := json.Unmarshal(e.Value, &v); err != nil {
		return v, 0, fmt.Errorf("the registry's entry %s is damaged: %w", key, err)
	}
	return v, e.Revision, nil
}

func put(ctx context.Context, b *store.Bucket, key string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return b.Put(ctx, key, data)
}

const maxAttempts = 100

// errUnchanged makes update return without writing, and without an error.
var errUnchanged = errors.New("unchanged")

// updater changes entries by compare-and-swap. Its locks only keep the requests of this process from being in each
// other's way; what is right is decided by the registry's revisions.
type updater struct {
	seed  maphash.Seed
	locks [64]sync.Mutex
}

// update reads the entry, lets change alter it, and writes it back, again from the start if somebody else was faster.
// It returns the entry as it is now.
func update[T any](ctx context.Context, u *updater, b *store.Bucket, key string, change func(v *T, exists bool) error) (T, error) {
	lock := &u.locks[maphash.String(u.seed, key)%uint64(len(u.locks))]
	lock.Lock()
	defer lock.Unlock()
	for attempt := range maxAttempts {
		v, revision, err := read[T](ctx, b, key)
		exists := err == nil
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return v, err
		}
		before := v
		if err := change(&v, exists); errors.Is(err, errUnchanged) {
			return before, nil
		} else if err != nil {
			return before, err
		}
		data, err := json.Marshal(v)
		if err != nil {
			return before, err
		}
		if exists {
			err = b.Update(ctx, key, data, revision)
		} else {
			err = b.Create(ctx, key, data)
		}
		if !errors.Is(err, store.ErrConflict) {
			return v, err
		}
		select { // another process is at it too
		case <-ctx.Done():
			return v, ctx.Err()
		case <-time.After(rand.N(time.Duration(min(attempt+1, 20)) * time.Millisecond)):
		}
	}
	var zero T
	return zero, fmt.Errorf("%w: %s, after %d attempts", store.ErrConflict, key, maxAttempts)
}
