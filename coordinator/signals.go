// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/coordinator/store"
	"github.com/pilot-protocol/pilot/identity"
)

// What an agent may call others. A node calls once for each attempt to reach a peer, and those are seconds apart.
const (
	signalRate, signalBurst = rate.Limit(5), 100  // of one agent to all others
	pairRate, pairBurst     = rate.Limit(0.25), 4 // of one agent to another one
	// signalAge is how far the time in a signal may be from this coordinator's, as in handshakes: clocks differ.
	signalAge = 5 * time.Minute
)

// pair is a direction between two agents.
type pair struct{ from, to identity.AgentPublic }

// signals decides which calls of agents are passed on. It remembers in this process only, for as long as a call could come
// again; the receiver checks serials too.
type signals struct {
	agents *limiter[identity.AgentPublic]
	pairs  *limiter[pair]

	mu    sync.Mutex
	last  map[pair]uint64 // the highest serial
	swept time.Time
}

func newSignals() *signals {
	return &signals{
		agents: newLimiter[identity.AgentPublic](signalRate, signalBurst), pairs: newLimiter[pair](pairRate, pairBurst),
		last: make(map[pair]uint64),
	}
}

// fresh reports whether the serial is higher than any before, and remembers it.
func (s *signals) fresh(p pair, serial uint64, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	known, ok := s.last[p]
	if serial <= known {
		return false
	}
	if !ok && len(s.last) >= maxKeys {
		s.sweepLocked(now)
		if len(s.last) >= maxKeys {
			return false
		}
	}
	s.last[p] = serial
	return true
}

// sweepLocked forgets what is too old to be accepted again. Like that of a limiter it works at most once per second.
func (s *signals) sweepLocked(now time.Time) {
	if since := now.Sub(s.swept); since >= 0 && since < time.Second {
		return
	}
	s.swept = now
	oldest := uint64(now.Add(-signalAge).UnixMilli())
	for p, serial := range s.last {
		if serial < oldest {
			delete(s.last, p)
		}
	}
}

// postSignal passes an agent's call on to the streams of the agent that it is for, at whichever coordinator they are.
func (s *server) postSignal(ctx context.Context, c caller, req api.SignalRequest) error {
	now := s.now()
	if !s.signals.agents.allow(c.agent, now) {
		return errRate()
	}
	signal, err := identity.OpenSignal(req.Signal, s.network.Authority)
	if err != nil {
		return badStatement(err)
	}
	if signal.From != c.agent {
		return fail(api.CodeForbidden, "", "the signal is another agent's")
	}
	if at := time.UnixMilli(int64(min(signal.Serial, maxSerial))); at.Before(now.Add(-signalAge)) || at.After(now.Add(signalAge)) {
		return fail(api.CodeBadRequest, "Check this host's clock.", "the signal is not of these minutes")
	}
	p := pair{signal.From, signal.To}
	if !s.signals.pairs.allow(p, now) {
		return errRate()
	}
	if err := s.mayCall(ctx, p); err != nil {
		return err
	}
	if !s.signals.fresh(p, signal.Serial, now) {
		return fail(api.CodeConflict, "", "a signal with the same or a higher serial came already")
	}
	return s.store.Publish(signalSubject+pairKey(p.to, p.from), signal.Raw())
}

// maxSerial keeps a serial within what a time can be: the end of the year 9999.
const maxSerial = 253402300799_000

// signalSubject, then the keys of the receiver and of the sender, is the subject under which coordinators pass signals on.
const signalSubject = "signal."

// mayCall says NOT_FOUND unless the other one is a member and both consent to each other. That is all that it lets the
// caller know.
func (r *registry) mayCall(ctx context.Context, p pair) error {
	a, _, err := read[agentRecord](ctx, r.store.Agents, agentKey(p.to))
	if errors.Is(err, store.ErrNotFound) || a.revoked() {
		return errHidden(p.to.String())
	} else if err != nil {
		return err
	}
	for _, one := range []pair{p, {p.to, p.from}} {
		if _, active, err := r.consent(ctx, one.from, one.to); err != nil {
			return err
		} else if !active {
			return errHidden(p.to.String())
		}
	}
	return nil
}
