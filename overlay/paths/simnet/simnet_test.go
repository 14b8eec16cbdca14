// SPDX-License-Identifier: Apache-2.0

package simnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/pilot-protocol/pilot/overlay/paths"
	"github.com/pilot-protocol/pilot/underlay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const latency = 10 * time.Millisecond

func overlayOf(n byte) netip.Addr { return netip.AddrFrom16([16]byte{0xfd, 15: n}) }

// server is a public host, with an address that ends in n.
func server(i *Internet, n byte) *Host {
	return i.Root().Host(netip.AddrFrom4([4]byte{203, 0, 113, n}), overlayOf(n))
}

// outside is the address that the tests' routers have.
func outside() netip.Addr { return netip.AddrFrom4([4]byte{198, 51, 100, 1}) }

// behind puts a host behind a router of its own.
func behind(i *Internet, o RouterOptions) (*Router, *Host) {
	if o.Mapping != None {
		o.Outside = outside()
	}
	r, s := i.Root().Router(o)
	return r, s.Host(netip.AddrFrom4([4]byte{192, 168, 1, 2}), overlayOf(200))
}

// next is what a host has got, after all that is under way has arrived; nothing came where ok is false.
func next(h *Host) (data string, p underlay.Path, ok bool) {
	time.Sleep(10 * latency)
	synctest.Wait()
	select {
	case b := <-h.in:
		return string(b.Data), b.Path, true
	default:
		return "", p, false
	}
}

func send(t *testing.T, h *Host, to netip.AddrPort, data string) {
	t.Helper()
	if err := h.Send(underlay.Path{Remote: to}, [][]byte{[]byte(data)}); err != nil {
		t.Error(err)
	}
}

func (h *Host) at() netip.AddrPort { return netip.AddrPortFrom(h.addr, Port) }

// What others see of a host, by the kind of the mapping; and what that makes the host think.
func TestMapping(t *testing.T) {
	for kind, tt := range map[Kind]struct {
		perAddress bool
		nat        paths.NAT
		observed   int
	}{
		None: {false, paths.NATNone, 1}, EndpointIndependent: {false, paths.NATEasy, 2},
		AddressDependent: {true, paths.NATHard, 2}, AddressAndPortDependent: {true, paths.NATHard, 2},
	} {
		synctest.Test(t, func(t *testing.T) {
			i := New(latency)
			_, h := behind(i, RouterOptions{Mapping: kind, Filtering: EndpointIndependent})
			a, b := server(i, 1), server(i, 2)
			seen := func(s *Host) netip.AddrPort {
				send(t, h, s.at(), "hello")
				d, p, ok := next(s)
				if !ok || d != "hello" || p.Local != s.addr {
					t.Errorf("kind %d: %q came along %v", kind, d, p)
				}
				return p.Remote
			}
			one, two := seen(a), seen(b)
			if differ := one != two; differ != tt.perAddress || seen(a) != one {
				t.Errorf("kind %d: seen at %v, and by another at %v", kind, one, two)
			}
			if want := tt.nat == paths.NATNone; (one == h.at()) != want {
				t.Errorf("kind %d: seen at %v", kind, one)
			}
			if all, nat := h.Observe(); nat != tt.nat || len(all) != tt.observed || all[0] != h.at() {
				t.Errorf("kind %d: it observes %v, %v", kind, all, nat)
			}
			// Another port of one address is another mapping where the port counts.
			send(t, h, netip.AddrPortFrom(a.addr, 9), "to another port") // nobody takes it
			time.Sleep(10 * latency)
			h.net.mu.Lock()
			mappings := len(h.segment.gateway.byOutside)
			h.net.mu.Unlock()
			if want := map[Kind]int{None: 1, EndpointIndependent: 1, AddressDependent: 4, AddressAndPortDependent: 5}[kind]; mappings != want {
				t.Errorf("kind %d: %d mappings, not %d", kind, mappings, want) // two of them are those that Observe made
			}
		})
	}
}

// Who may send in, by the kind of the filter, after something was sent to one port of one address.
func TestFiltering(t *testing.T) {
	for kind, want := range map[Kind][]string{
		EndpointIndependent:     {"other address", "other port", "same"},
		AddressDependent:        {"other port", "same"},
		AddressAndPortDependent: {"same"},
	} {
		for _, mapping := range []Kind{None, EndpointIndependent} {
			synctest.Test(t, func(t *testing.T) {
				i := New(latency)
				r, h := behind(i, RouterOptions{Mapping: mapping, Filtering: kind, Timeout: time.Minute})
				a, b := server(i, 1), server(i, 2)
				fan, err := a.Fan(netip.AddrPort{}, 1)
				if err != nil {
					t.Fatal(err)
				}
				send(t, h, a.at(), "hole")
				_, p, ok := next(a)
				if !ok {
					t.Fatal("nothing gets out")
				}
				answers := func() (got []string) {
					send(t, a, p.Remote, "same")
					if err := a.Send(underlay.Path{Remote: p.Remote, Socket: fan[0].Socket}, [][]byte{[]byte("other port")}); err != nil {
						t.Error(err)
					}
					send(t, b, p.Remote, "other address")
					for d, _, ok := next(h); ok; d, _, ok = next(h) {
						got = append(got, d)
					}
					slices.Sort(got) // they arrive at the same moment
					return got
				}
				if got := answers(); !slices.Equal(got, want) {
					t.Errorf("filter %d, mapping %d: %q came in", kind, mapping, got)
				}
				time.Sleep(2 * time.Minute)
				if got := answers(); len(got) != 0 {
					t.Errorf("filter %d, mapping %d: %q came in when nothing had gone out for long", kind, mapping, got)
				}
				send(t, h, a.at(), "again")
				if _, p, ok = next(a); !ok || len(answers()) != len(want) {
					t.Errorf("filter %d, mapping %d: it is not open again", kind, mapping)
				}
				r.Flush()
				if got := answers(); len(got) != 0 {
					t.Errorf("filter %d, mapping %d: %q came in after a restart", kind, mapping, got)
				}
			})
		}
	}
}

func TestHairpin(t *testing.T) {
	for _, hairpin := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			i := New(latency)
			_, s := i.Root().Router(RouterOptions{
				Outside: outside(), Mapping: EndpointIndependent, Filtering: EndpointIndependent, Hairpin: hairpin,
			})
			a, b := s.Host(netip.AddrFrom4([4]byte{192, 168, 1, 2}), overlayOf(1)), s.Host(netip.AddrFrom4([4]byte{192, 168, 1, 3}), overlayOf(2))
			all, _ := b.Observe()
			send(t, a, all[1], "round the corner")
			if d, p, ok := next(b); ok != hairpin || ok && (d != "round the corner" || p.Remote.Addr() != outside()) {
				t.Errorf("hairpin %v: %q came along %v", hairpin, d, p)
			}
			send(t, a, b.at(), "straight")
			if d, p, ok := next(b); !ok || d != "straight" || p.Remote != a.at() {
				t.Errorf("%q came along %v", d, p)
			}
		})
	}
}

func TestBlockedRouter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := New(latency)
		_, h := behind(i, RouterOptions{Mapping: EndpointIndependent, Filtering: EndpointIndependent, Blocked: true})
		a := server(i, 1)
		send(t, h, a.at(), "out")
		if d, _, ok := next(a); ok {
			t.Errorf("%q got out", d)
		}
		if all, nat := h.Observe(); nat != paths.NATBlocked || len(all) != 1 {
			t.Errorf("%v, %v", all, nat)
		}
	})
}

// A router that gets another address forgets its mappings, and is found at the new one only.
func TestReaddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := New(latency)
		r, h := behind(i, RouterOptions{Mapping: EndpointIndependent, Filtering: EndpointIndependent})
		a := server(i, 1)
		send(t, h, a.at(), "from the old one")
		_, old, _ := next(a)
		r.Readdress(netip.AddrFrom4([4]byte{198, 51, 100, 9}))
		send(t, a, old.Remote, "to the old one")
		if d, _, ok := next(h); ok {
			t.Errorf("%q came in", d)
		}
		send(t, h, a.at(), "from the new one")
		_, p, _ := next(a)
		send(t, a, p.Remote, "to the new one")
		if d, _, ok := next(h); !ok || d != "to the new one" || p.Remote.Addr() == old.Remote.Addr() {
			t.Errorf("%q came in, to %v", d, p.Remote)
		}
	})
}

// The middle takes its time, loses what it is told to lose, and counts. A host that sleeps or moved gets nothing.
func TestWeather(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := New(latency)
		a, b := server(i, 1), server(i, 2)
		began := time.Now()
		send(t, a, b.at(), "timed")
		bursts := make([]underlay.Burst, 1)
		if n, err := b.Receive(0, bursts); n != 1 || err != nil || time.Since(began) != latency {
			t.Errorf("%d, %v after %v", n, err, time.Since(began))
		}
		i.Drop(func(from, _ netip.AddrPort) bool { return from == a.at() })
		send(t, a, b.at(), "lost")
		send(t, b, a.at(), "not lost")
		if d, _, ok := next(b); ok {
			t.Errorf("%q came", d)
		}
		if d, _, ok := next(a); !ok || d != "not lost" {
			t.Errorf("%q came", d)
		}
		i.Drop(nil)
		b.Sleep()
		send(t, a, b.at(), "to a sleeper")
		if d, _, ok := next(b); ok {
			t.Errorf("%q came", d)
		}
		b.Wake()
		old := b.at()
		b.Move(i.Root(), netip.AddrFrom4([4]byte{203, 0, 113, 77}))
		send(t, a, old, "to where it was")
		send(t, a, b.at(), "to where it is")
		if d, _, ok := next(b); !ok || d != "to where it is" {
			t.Errorf("%q came", d)
		}
		if n := i.Sent(); n != 6 {
			t.Errorf("%d were sent", n)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if _, err := b.Receive(0, bursts); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Receive after Close: %v", err)
		}
	})
}

// Relays forward to those who are connected, by overlay address, whatever is between; and do what a bad one does.
func TestRelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := New(latency)
		r := i.Relay(7, 3*latency)
		_, h := behind(i, RouterOptions{Mapping: EndpointIndependent, Blocked: true})
		a := server(i, 1)
		over := underlay.Path{Relay: 7, Remote: netip.AddrPortFrom(h.overlay, 0)}
		say := func(d string) {
			if err := a.Send(over, [][]byte{[]byte(d)}); err != nil {
				t.Error(err)
			}
		}
		heard := func() (all []string) {
			for d, p, ok := next(h); ok; d, p, ok = next(h) {
				inner, path, ok := h.Accept([]byte(d), p)
				if !ok || path != (underlay.Path{Relay: 7, Remote: netip.AddrPortFrom(a.overlay, 0)}) {
					t.Errorf("it came along %v", path)
				}
				all = append(all, string(inner))
			}
			return all
		}
		expect := func(when string, want ...string) {
			if got := heard(); !slices.Equal(got, want) {
				t.Errorf("%s: %q came", when, got)
			}
		}
		say("nobody there")
		expect("not connected")
		if p := <-a.Gone(); p != over {
			t.Errorf("%v is gone", p)
		}
		h.Attach(7)
		say("there")
		expect("connected", "there")
		r.Kill()
		say("dead")
		expect("dead")
		r.Revive()
		r.Mangle(func(d []byte) []time.Duration {
			if string(d) == "drop" {
				return nil
			}
			return []time.Duration{0, latency}
		})
		say("drop")
		say("twice")
		expect("mangled", "twice", "twice")
		r.Mangle(nil)
		r.Inject(a.overlay, h.overlay, []byte("forged"))
		expect("injected", "forged")
		h.Detach(7)
		say("gone")
		expect("gone")
		if p := <-a.Gone(); p != over || len(a.Gone()) != 0 {
			t.Errorf("%v is gone", p)
		}
		if err := a.Send(underlay.Path{Relay: 8}, [][]byte{{1}}); !errors.Is(err, underlay.ErrNoRelay) {
			t.Errorf("an unknown relay: %v", err)
		}
	})
}

// The sockets of a fan have ports of their own, and end when they are not kept.
func TestFan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := New(latency)
		a, b := server(i, 1), server(i, 2)
		fan, err := a.Fan(b.at(), 3)
		if err != nil || len(fan) != 3 || a.Sockets() != 3 {
			t.Fatalf("%v, %v", fan, err)
		}
		ports := map[uint16]bool{Port: true}
		for n, p := range fan {
			if err := a.SendBurst(&underlay.Burst{Path: p, Data: fmt.Append(nil, n), Size: 1}); err != nil {
				t.Error(err)
			}
			_, from, _ := next(b)
			ports[from.Remote.Port()] = true
			send(t, b, from.Remote, "back")
			if d, back, ok := next(a); !ok || d != "back" || back.Socket != p.Socket {
				t.Errorf("%q came along %v", d, back)
			}
		}
		if len(ports) != 4 {
			t.Errorf("ports %v", ports)
		}
		a.Unfan(fan[1:2])
		for n, p := range fan {
			if err := a.Send(p, [][]byte{{1}}); errors.Is(err, net.ErrClosed) != (n != 1) {
				t.Errorf("socket %d: %v", n, err)
			}
		}
		if a.Sockets() != 1 {
			t.Errorf("%d are open", a.Sockets())
		}
	})
}

// A host that asks its servers now and then keeps its mapping, and notices when it has another one.
func TestKeepAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := New(latency)
		r, h := behind(i, RouterOptions{Mapping: EndpointIndependent, Filtering: EndpointIndependent, Timeout: 30 * time.Second})
		before, _ := h.Observe()
		stop, changed := make(chan struct{}), make(chan time.Time, 10)
		done := make(chan struct{})
		go func() {
			defer close(done)
			h.KeepAlive(stop, func() { changed <- time.Now() })
		}()
		time.Sleep(10 * time.Minute)
		if after, _ := h.Observe(); !slices.Equal(before, after) || len(changed) != 0 {
			t.Errorf("%v became %v", before, after)
		}
		r.Flush()
		time.Sleep(time.Minute)
		if len(changed) != 1 {
			t.Errorf("%d changes were noticed", len(changed))
		}
		close(stop)
		<-done
	})
}
