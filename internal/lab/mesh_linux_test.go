// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// mesh is a network of agents on an [Internet]: a coordinator of its own, relays, and an agent on each site.
type mesh struct {
	*Internet
	t           testing.TB
	coordinator *Process
	invite      string // for agents, as many as come
	admin       *Site
	relays      map[string]*relayHost // by name
}

// relayHost is a server that runs a relay and nothing else.
type relayHost struct {
	*Site
	args    []string
	process *Process
}

// meshUses is how many agents may join a mesh.
const meshUses = 4096

// openMesh makes the network, with one agent, "admin", and these relays. Without any the coordinator is the relay.
func openMesh(t testing.TB, delay time.Duration, relays ...string) *mesh {
	t.Helper()
	if testing.Short() {
		t.Skip("the lab starts real programs in network namespaces: not in a short run")
	}
	l := New(t)
	Programs(t, "curl", "python3", "ping")
	Binary(t)
	m := &mesh{Internet: l.Internet(), t: t, relays: map[string]*relayHost{}}
	server := m.Server("coord")
	// Port 443, as networks that let nothing else out want it. All addresses are literal: not every site has DNS.
	args := []string{"pilot", "coordinator", "--state", filepath.Join(server.Home(), "coordinator"), "--listen", ":443",
		"--advertise", at(server.IPv4(), 443), "--advertise", at(server.IPv6(), 443)}
	if len(relays) > 0 {
		args = append(args, "--no-relay")
	}
	m.coordinator = server.Start(args...)
	first := founderInvite(t, m.coordinator)
	m.admin = m.Server("admin")
	joinBy(t, m.admin.Host, "admin", first)
	m.invite = pilot[localapi.InviteResult](t, m.admin.Host, "invite", "--uses", fmt.Sprint(meshUses)).Invite
	for _, name := range relays {
		m.relay(name)
	}
	m.Delay = delay
	return m
}

// relay starts a relay on a server of its own.
func (m *mesh) relay(name string) {
	m.t.Helper()
	r := &relayHost{Site: m.Server(name)}
	invite := pilot[localapi.InviteResult](m.t, m.admin.Host, "invite", "--tag", "relay", "--no-trust").Invite
	r.args = []string{"pilot", "relay", "--state", filepath.Join(r.Home(), "relay"), "--name", name, "--region", "eu", "--listen", ":443",
		"--advertise", at(r.IPv4(), 443), "--advertise", at(r.IPv6(), 443), "--invite-file", r.WriteFile("invite", invite, 0o600)}
	m.relays[name] = r
	m.revive()
}

// revive starts the relays that don't run. Agents learn of them from the coordinator.
func (m *mesh) revive() {
	m.t.Helper()
	for _, r := range m.relays {
		if r.process == nil || !r.process.Running() {
			r.process = r.Start(r.args...)
		}
	}
}

// join brings an agent up on each of the sites, with the site's name and trust with the admin.
func (m *mesh) join(sites ...*Site) {
	m.t.Helper()
	m.each(len(sites), 4, func(i int) error {
		return m.command(sites[i].Host, m.invite, "up", "--name", sites[i].Name(), "-")
	})
}

// trust makes the agents of pairs of sites consent to each other, and waits until each knows of it.
func (m *mesh) trust(pairs ...[2]*Site) {
	m.t.Helper()
	m.each(len(pairs), 4, func(i int) error {
		a, b := pairs[i][0], pairs[i][1]
		if err := m.command(a.Host, "", "trust", b.Name()); err != nil {
			return err
		}
		if err := m.command(b.Host, "", "trust", a.Name()); err != nil {
			return err
		}
		return poll(20*time.Second, func(context.Context) error {
			for _, way := range [][2]*Site{{a, b}, {b, a}} {
				if _, err := peer(way[0].Host, way[1].Name()); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// command runs a pilot command that has to succeed, from any goroutine.
func (m *mesh) command(h *Host, input string, args ...string) error {
	if r := tryPilot(h, input, args...); !r.OK() {
		return fmt.Errorf("%s: %v", h.Name(), r)
	}
	return nil
}

// each calls f with 0 to n-1, at most so many at once, and ends the test if one fails.
func (m *mesh) each(n, atOnce int, f func(int) error) {
	m.t.Helper()
	if err := eachOf(n, atOnce, f); err != nil {
		m.t.Fatal(err)
	}
}

func eachOf(n, atOnce int, f func(int) error) error {
	var wg sync.WaitGroup
	tokens, failed := make(chan struct{}, atOnce), make([]error, n)
	for i := range n {
		tokens <- struct{}{}
		wg.Go(func() {
			failed[i] = f(i)
			<-tokens
		})
	}
	wg.Wait()
	return errors.Join(failed...)
}

// status is what pilot status says, from any goroutine.
func status(h *Host) (localapi.Status, error) {
	var s localapi.Status
	r := tryPilot(h, "", "status")
	if !r.OK() {
		return s, fmt.Errorf("%s: %v", h.Name(), r)
	}
	return s, json.Unmarshal([]byte(r.Stdout), &s)
}

// peer is what pilot status says of one peer that both sides consented to.
func peer(h *Host, name string) (localapi.PeerStatus, error) {
	s, err := status(h)
	if err != nil {
		return localapi.PeerStatus{}, err
	}
	for _, p := range s.Peers {
		if p.Name == name {
			if p.State == localapi.PeerPending || p.State == localapi.PeerRefused {
				return p, fmt.Errorf("%s: %s is %s", h.Name(), name, p.State)
			}
			return p, nil
		}
	}
	return localapi.PeerStatus{}, fmt.Errorf("%s knows no peer %s", h.Name(), name)
}

// direct tells whether a path is one without a relay.
func direct(path string) bool { return strings.HasPrefix(path, "direct ") }

// relayed tells whether a path is one over a relay.
func relayed(path string) bool { return strings.HasPrefix(path, "relay ") }

// awaitPath waits until the host's path to a peer is as wanted, while something is sent.
func awaitPath(h *Host, name string, limit time.Duration, want func(path string) bool) error {
	return poll(limit, func(context.Context) error {
		p, err := peer(h, name)
		if err == nil && !want(p.Path) {
			err = fmt.Errorf("%s reaches %s by %q", h.Name(), name, p.Path)
		}
		return err
	})
}
