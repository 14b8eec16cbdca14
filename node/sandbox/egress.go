// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pilot-protocol/pilot/netstack"
	"github.com/pilot-protocol/pilot/netstack/target"
	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/policy"
)

// maxRefusals is how many different refused targets are remembered.
const maxRefusals = 16

// Why something is refused. They are shown to people.
const (
	whyName     = "no rule allows the name"
	whyAddress  = "no rule allows the address"
	whyRebound  = "an allowed name points at an address that it must not"
	whyNever    = "no rule can allow such an address"
	whyNetwork  = "it is the network's own, and goes there only directly"
	whyOwn      = "it is this host's own, and no rule names it alone"
	networkTCP  = "tcp"
	kindOfNames = "dns"
)

// egress decides what a sandbox reaches outside of its network, and makes the connections that it allows.
type egress struct {
	rules   *policy.Egress
	network atomic.Pointer[netip.Prefix] // nil: not known yet
	// own tells the addresses of this host.
	own  func(netip.Addr) bool
	dial func(ctx context.Context, network, address string) (net.Conn, error)
	now  func() time.Time
	pins pins

	accepted, refused atomic.Uint64
	active            atomic.Int64

	mu   sync.Mutex
	last []localapi.Refusal // the latest first; guarded by mu
}

func newEgress(rules *policy.Egress, own func(netip.Addr) bool, now func() time.Time) *egress {
	d := &net.Dialer{Timeout: dialLimit, KeepAlive: -1} // the sandbox's own end says whether it is still there
	return &egress{rules: rules, own: own, dial: d.DialContext, now: now, pins: pins{now: now}}
}

// dialLimit is how long a connection may take to be made: a little longer than programs commonly wait.
const dialLimit = 2 * time.Minute

// check refuses rules that could never allow what they name.
func (e *egress) check() error {
	for _, a := range e.rules.Literals() {
		if class := target.ClassOf(a); class.Never() {
			return &localapi.Error{Code: localapi.CodeUsage, Message: fmt.Sprintf("--egress: %v is a %v address, which no program of pilot run can reach", a, class),
				Hint: "a service of this host is reached by an address of the host on one of its networks"}
		}
	}
	return nil
}

// setNetwork says which addresses are the network's own.
func (e *egress) setNetwork(p netip.Prefix) { e.network.Store(&p) }

// Ask implements magicdns.Gate.
func (e *egress) Ask(name string) bool {
	if e.rules.MayAsk(name) {
		return true
	}
	e.refuse(kindOfNames, name, whyName)
	return false
}

// Admit implements magicdns.Gate: it keeps out of answers what a name must not lead to, and remembers what it may.
func (e *egress) Admit(name string, a netip.Addr, ttl time.Duration) bool {
	far := target.Real(a)
	if place, why := e.place(far, a); why == "" && e.nameable(far, place) {
		e.pins.add(far, name, ttl)
		return true
	}
	e.refuse(kindOfNames, name+" → "+a.String(), whyRebound)
	return false
}

// nameable reports whether a rule that allows a name may lead to an address.
func (e *egress) nameable(far netip.Addr, place policy.Place) bool {
	return place == policy.PlacePublic || e.rules.MayReach(far, 0, place)
}

// place tells what an address is. why is not empty for one that no rule can allow.
func (e *egress) place(far, written netip.Addr) (place policy.Place, why string) {
	class := target.ClassOf(written)
	network := e.network.Load()
	switch {
	case class.Never():
		return 0, whyNever
	case network == nil || network.Contains(far) || network.Contains(written):
		return 0, whyNetwork
	case e.own(far):
		return policy.PlaceHost, ""
	case class == target.Private:
		return policy.PlacePrivate, ""
	}
	return policy.PlacePublic, ""
}

// allowed decides about a connection; why is empty for one that is allowed.
func (e *egress) allowed(to netip.AddrPort) (why string) {
	far := target.Real(to.Addr())
	place, why := e.place(far, to.Addr())
	named := func(name string) bool { return e.rules.MayReachNamed(name, to.Port()) }
	switch {
	case why != "":
		return why
	case e.rules.MayReach(far, to.Port(), place):
		return ""
	case e.nameable(far, place) && slices.ContainsFunc(e.pins.names(far), named):
		return ""
	case place == policy.PlaceHost:
		return whyOwn
	}
	return whyAddress
}

// open answers the gateway: it connects to what the rules allow.
func (e *egress) open(ctx context.Context, f netstack.Flow) (serve func(net.Conn), err error) {
	if why := e.allowed(f.Destination); why != "" {
		e.refuse(f.Network, f.Destination.String(), why)
		return nil, syscall.EACCES
	}
	to := netip.AddrPortFrom(target.Real(f.Destination.Addr()), f.Destination.Port())
	far, err := e.dial(ctx, f.Network, to.String())
	if err != nil {
		return nil, err
	}
	e.accepted.Add(1)
	return func(near net.Conn) {
		defer far.Close()
		if near == nil {
			return
		}
		e.active.Add(1)
		defer e.active.Add(-1)
		if f.Network == networkTCP {
			spliceStreams(near, far)
		} else {
			spliceDatagrams(near, far)
		}
	}, nil
}

// never is told what the gateway refuses by itself.
func (e *egress) never(f netstack.Flow) { e.refuse(f.Network, f.Destination.String(), whyNever) }

// refuse remembers something that was refused.
func (e *egress) refuse(kind, wanted, why string) {
	e.refused.Add(1)
	e.mu.Lock()
	defer e.mu.Unlock()
	r := localapi.Refusal{Kind: kind, Target: wanted, Why: why}
	if i := slices.IndexFunc(e.last, func(o localapi.Refusal) bool { return o.Kind == kind && o.Target == wanted && o.Why == why }); i >= 0 {
		r = e.last[i]
		e.last = slices.Delete(e.last, i, i+1)
	}
	r.Count++
	r.Time = e.now().UTC()
	e.last = slices.Insert(e.last, 0, r)
	e.last = e.last[:min(len(e.last), maxRefusals)]
}

// Status implements node.Egress.
func (e *egress) Status() localapi.Egress {
	e.mu.Lock()
	defer e.mu.Unlock()
	return localapi.Egress{
		Rules: e.rules.Rules(), Active: int(e.active.Load()), Accepted: e.accepted.Load(), Refused: e.refused.Load(), Last: slices.Clone(e.last),
	}
}
