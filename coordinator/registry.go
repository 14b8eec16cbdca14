// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/coordinator/ca"
	"github.com/pilot-protocol/pilot/coordinator/store"
	"github.com/pilot-protocol/pilot/identity"
)

// registry is what a coordinator may do, without HTTP. It is safe for concurrent use and holds no state.
type registry struct {
	store     *store.Store
	ca        *ca.CA
	network   networkRecord
	advertise []string
	now       func() time.Time
	log       *slog.Logger
	updater   *updater
	refusals  *refusals
	pulse     *pulse
}

// caller is who makes a request.
type caller struct {
	agent identity.AgentPublic // zero: the operator of this process
	addr  netip.Addr           // where from, as this coordinator sees it
}

const (
	maxObserved = 2
	zoneSuffix  = ".internal"
)

// fail makes an error for the caller. What callers sent comes back in ASCII only: a name that was refused for its
// look-alike letters mustn't reach a terminal by way of its refusal.
func fail(code, hint, format string, args ...any) *api.Error {
	return &api.Error{Code: code, Message: ascii(fmt.Sprintf(format, args...)), Hint: hint}
}

func ascii(s string) string {
	var b strings.Builder
	for _, c := range s {
		if c >= ' ' && c <= '~' {
			b.WriteRune(c)
		} else {
			fmt.Fprintf(&b, "\\u{%x}", c)
		}
	}
	return b.String()
}

// errHidden is the answer for what isn't there and for what the caller may not know about.
func errHidden(q string) *api.Error {
	return fail(api.CodeNotFound, "Names, addresses and keys are matched exactly.", "there is no agent %q that you may see", q)
}

// badStatement turns an error of package identity into an answer.
func badStatement(err error) *api.Error {
	return fail(api.CodeBadRequest, "The signed statement must be of this network, unaltered, and signed by the key that it names.", "%v", err)
}

// member returns the caller's entry, or NOT_MEMBER, or REVOKED.
func (r *registry) member(ctx context.Context, agent identity.AgentPublic) (agentRecord, error) {
	a, _, err := read[agentRecord](ctx, r.store.Agents, agentKey(agent))
	switch {
	case errors.Is(err, store.ErrNotFound):
		return a, fail(api.CodeNotMember, "Join with an invite: pilot up INVITE.", "this agent isn't a member of the network")
	case err != nil:
		return a, err
	case a.revoked():
		return a, errRevoked()
	}
	return a, nil
}

func errRevoked() *api.Error {
	return fail(api.CodeRevoked, "A revoked key can't return; start with a new identity and a new invite.", "this agent's membership was revoked")
}

// audited appends to the audit trail: who did what to whom, with which outcome and why.
type audited struct {
	Time    time.Time            `json:"time"`
	Action  string               `json:"action"`
	Outcome string               `json:"outcome"` // "done" or the code of the refusal
	Agent   identity.AgentPublic `json:"agent,omitzero"`
	Addr    netip.Addr           `json:"addr,omitzero"`
	Subject string               `json:"subject,omitempty"` // the join key, agent or name that it is about
	Reason  string               `json:"reason,omitempty"`
	Missed  uint64               `json:"missed,omitempty"` // refusals before this one that were too many to record
}

const (
	outcomeDone  = "done"
	auditTimeout = 5 * time.Second
)

// audit records what was done or refused. What was done fails when it can't be recorded. It is recorded even when the
// caller has hung up meanwhile. Refusals cost their callers nothing, so only so many of them are recorded.
func (r *registry) audit(ctx context.Context, c caller, action, subject, reason string, failure error) error {
	entry := audited{Time: r.now().UTC(), Action: action, Outcome: outcomeDone, Agent: c.agent, Addr: c.addr, Subject: subject, Reason: reason}
	if failure != nil {
		entry.Outcome, entry.Reason = api.CodeInternal, failure.Error()
		var e *api.Error
		if errors.As(failure, &e) {
			entry.Outcome, entry.Reason = e.Code, e.Message
		}
		var ok bool
		if entry.Missed, ok = r.refusals.allow(r.now()); !ok {
			r.log.Debug("a refusal that is not recorded", "action", action, "outcome", entry.Outcome, "agent", entry.Agent, "addr", entry.Addr)
			return failure
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditTimeout)
	defer cancel()
	r.log.Info("audit", "action", action, "outcome", entry.Outcome, "agent", entry.Agent, "addr", entry.Addr,
		"subject", subject, "reason", entry.Reason)
	err := r.store.Audit(ctx, action, entry)
	if failure != nil {
		return failure
	}
	return err
}

// found makes the network's entry, or reads the one that is there. known says that it must be there already.
func found(ctx context.Context, s *store.Store, want networkRecord, known bool) (networkRecord, error) {
	have, _, err := read[networkRecord](ctx, s.Network, networkKey)
	if errors.Is(err, store.ErrNotFound) {
		if known {
			return have, ErrRegistryLost
		}
		u := newUpdater()
		have, err = update(ctx, u, s.Network, networkKey, func(v *networkRecord, exists bool) error {
			if exists { // another coordinator was faster
				return errUnchanged
			}
			*v = want
			return nil
		})
	}
	if err != nil {
		return have, err
	}
	if have.Authority != want.Authority {
		return have, fmt.Errorf("the registry belongs to %s and not to %s", have.Authority, want.Authority)
	}
	return have, nil
}

// nextSerial is the serial of the next certificate: the time in milliseconds, and more than any before.
func nextSerial(now time.Time, last uint64) uint64 { return max(uint64(now.UnixMilli()), last+1) }

// issue puts a fresh certificate into the entry.
func (r *registry) issue(agent identity.AgentPublic, a *agentRecord) error {
	serial := nextSerial(r.now(), a.Serial)
	cert, err := r.ca.Issue(identity.Certificate{
		Agent: agent, Name: a.Name, Tags: a.Tags, Jurisdiction: a.Jurisdiction, Serial: serial,
	}, r.now())
	if err != nil {
		return err
	}
	a.Serial, a.Certificate = serial, cert.Raw()
	return nil
}

// renew gives a member a fresh certificate.
func (r *registry) renew(ctx context.Context, c caller) (api.Membership, error) {
	a, err := update(ctx, r.updater, r.store.Agents, agentKey(c.agent), func(a *agentRecord, exists bool) error {
		if !exists {
			_, err := r.member(ctx, c.agent)
			return cmpError(err, store.ErrConflict)
		}
		if a.revoked() {
			return errRevoked()
		}
		return r.issue(c.agent, a)
	})
	if err != nil {
		return api.Membership{}, err
	}
	return r.renewed(ctx, c.agent, a)
}

// renewed is what an agent gets with the certificate that its entry has, which was issued just now.
func (r *registry) renewed(ctx context.Context, agent identity.AgentPublic, a agentRecord) (api.Membership, error) {
	pass, err := r.ca.Pass(agent, a.Serial, r.now())
	if err != nil {
		return api.Membership{}, err
	}
	return api.Membership{
		Certificate: a.Certificate, RelayPass: pass.Raw(), Network: r.network.Name, Coordinators: r.coordinators(ctx),
	}, nil
}

// cmpError returns err, or other where err is nil.
func cmpError(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

// How far ahead the clock behind a statement may be. What is of a time to come would keep out all that its agent says
// until then, after its clock was set right.
const (
	statementAhead = 5 * time.Minute // as in handshakes; agents date statements back by ten minutes more
	recordAhead    = 15 * time.Minute
)

// checkRecord opens the statements of an agent about itself. Either may be empty.
func (r *registry) checkRecord(agent identity.AgentPublic, tunnel, record []byte) (serial uint64, err error) {
	if len(tunnel) > 0 {
		t, err := identity.OpenTunnelStatement(tunnel, r.network.Authority)
		switch {
		case err != nil:
			return 0, badStatement(err)
		case t.Agent != agent:
			return 0, fail(api.CodeForbidden, "", "the tunnel statement is another agent's")
		case errors.Is(t.ValidAt(r.now()), identity.ErrExpired):
			return 0, fail(api.CodeBadRequest, "Check this host's clock.", "the tunnel statement has expired")
		case t.NotBefore.After(r.now().Add(statementAhead)):
			return 0, fail(api.CodeBadRequest, "Check this host's clock.", "the tunnel statement isn't valid yet")
		}
	}
	if len(record) > 0 {
		rec, err := identity.OpenRecord(record, r.network.Authority)
		switch {
		case err != nil:
			return 0, badStatement(err)
		case rec.Agent != agent:
			return 0, fail(api.CodeForbidden, "", "the record is another agent's")
		case rec.Serial > uint64(r.now().Add(recordAhead).UnixMilli()):
			return 0, fail(api.CodeBadRequest, "Check this host's clock.", "the record is of a time to come")
		}
		serial = rec.Serial
	}
	return serial, nil
}

// setRecord puts checked statements into the entry. An older tunnel key or record never replaces a newer one.
func (r *registry) setRecord(a *agentRecord, tunnel, record []byte, serial uint64) (changed bool, err error) {
	if len(tunnel) > 0 && !slices.Equal(tunnel, a.Tunnel) {
		if len(a.Tunnel) > 0 {
			have, err := identity.OpenTunnelStatement(a.Tunnel, r.network.Authority)
			if err != nil {
				return false, err
			}
			want, err := identity.OpenTunnelStatement(tunnel, r.network.Authority)
			if err != nil {
				return false, err
			}
			if want.NotAfter.Before(have.NotAfter) {
				return false, fail(api.CodeConflict, "", "a tunnel statement that is valid for longer is stored already")
			}
		}
		a.Tunnel, changed = tunnel, true
	}
	if len(record) > 0 && !slices.Equal(record, a.Record) {
		if len(a.Record) > 0 {
			have, err := identity.OpenRecord(a.Record, r.network.Authority)
			if err != nil {
				return false, err
			}
			if serial <= have.Serial {
				return false, fail(api.CodeConflict, "", "a record with the same or a higher serial is stored already")
			}
		}
		a.Record, changed = record, true
	}
	return changed, nil
}

// putRecord stores where a member can be reached and under which tunnel key.
func (r *registry) putRecord(ctx context.Context, c caller, req api.RecordRequest) error {
	serial, err := r.checkRecord(c.agent, req.Tunnel, req.Record)
	if err != nil {
		return err
	}
	_, err = update(ctx, r.updater, r.store.Agents, agentKey(c.agent), func(a *agentRecord, exists bool) error {
		if !exists || a.revoked() {
			return errRevoked()
		}
		changed, err := r.setRecord(a, req.Tunnel, req.Record, serial)
		if err == nil && !changed {
			return errUnchanged
		}
		return err
	})
	return err
}

// coordinators lists the addresses of the coordinators that are up, this one's first. It is a hint, so a failure shortens it.
func (r *registry) coordinators(ctx context.Context) []string {
	all := slices.Clone(r.advertise)
	entries, err := r.store.Presence.List(ctx, presenceCoordinator+"*")
	if err != nil {
		r.log.Debug("listing the coordinators", "error", err)
	}
	for _, e := range entries {
		var c coordinatorRecord
		if decodeEntry(e.Value, &c) != nil {
			continue
		}
		for _, a := range c.Addresses {
			if !slices.Contains(all, a) {
				all = append(all, a)
			}
		}
	}
	return all
}
