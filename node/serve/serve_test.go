// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
)

func TestMain(m *testing.M) {
	// net/http waits half a second for a caller to read what is wrong with its request, also if the server has been closed.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait"))
}

// testNetwork is the network's prefix, caller who everybody on loopback is.
var (
	testNetwork = netip.MustParsePrefix("fd5c:1d2:93a0::/48")
	caller      = localapi.Agent{Name: "planner", Key: identity.AgentPublic{7}, Address: netip.MustParseAddr("fd5c:1d2:93a0::a"), Tags: []string{"admin", "eu"}}
)

// memoryNetwork is a network on loopback.
type memoryNetwork struct {
	mu     sync.Mutex
	taken  error // of the next ones that listen
	closed bool  // nobody is known any more
	at     map[uint16]string
}

func (n *memoryNetwork) listened(port uint16, at net.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.at[port] = at.String()
}

func (n *memoryNetwork) where(port uint16) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.at[port]
}

func (n *memoryNetwork) fails() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.taken
}

func (n *memoryNetwork) ListenTCP(_ context.Context, port uint16) (net.Listener, error) {
	if err := n.fails(); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err == nil {
		n.listened(port, l.Addr())
	}
	return l, err
}

func (n *memoryNetwork) ListenUDP(_ context.Context, port uint16) (net.PacketConn, error) {
	if err := n.fails(); err != nil {
		return nil, err
	}
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err == nil {
		n.listened(port, l.LocalAddr())
	}
	return l, err
}

func (n *memoryNetwork) Caller(netip.Addr) (localapi.Agent, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return localapi.Agent{}, errors.New("nobody's address")
	}
	return caller, nil
}

// running is a server that runs until the test ends.
type running struct {
	*Server
	network *memoryNetwork
}

func start(t *testing.T, o Options) *running {
	t.Helper()
	r := &running{network: &memoryNetwork{at: make(map[uint16]string)}}
	o.Network, o.Prefix = r.network, testNetwork
	r.Server = New(o)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return r
}

// port is one that a member of root's publishes.
func port(t *testing.T, protocol string, n uint16, target string) Port {
	t.Helper()
	to, err := ParseTarget(target, n)
	if err != nil {
		t.Fatal(err)
	}
	return Port{Protocol: protocol, Port: n, Target: to, Publisher: Publisher{Full: true}}
}

func (r *running) set(t *testing.T, ports ...Port) {
	t.Helper()
	if err := r.Set(t.Context(), ports); err != nil {
		t.Fatal(err)
	}
}

func (r *running) dial(t *testing.T, n uint16) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", r.network.where(n))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// program accepts connections until the test ends, and serves each.
func program(t *testing.T, network, address string, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() { defer c.Close(); serve(c) })
		}
	})
	t.Cleanup(func() { l.Close(); running.Wait() })
	return l.Addr().String()
}

func echo(c net.Conn) { _, _ = io.Copy(c, c) }

func exchange(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, len(text))
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != text {
		t.Fatalf("%q %v", buf, err)
	}
}

// A port that is published no more, or leads elsewhere, ends its connections; others go on.
func TestSetEndsWhatIsNotWanted(t *testing.T) {
	r := start(t, Options{})
	target := program(t, "tcp", "127.0.0.1:0", echo)
	a, b := port(t, "tcp", 1, target), port(t, "tcp", 2, target)
	r.set(t, a, b)
	one, two := r.dial(t, 1), r.dial(t, 2)
	exchange(t, one, "x")
	exchange(t, two, "x")
	r.set(t, b)
	if _, err := one.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the connection to a port that was removed: %v", err)
	}
	if _, err := net.Dial("tcp", r.network.where(1)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a new one: %v", err)
	}
	exchange(t, two, "y")
	b.Target.Addr = netip.MustParseAddrPort("127.0.0.1:1")
	r.set(t, b)
	if _, err := two.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after another target was set: %v", err)
	}
}

// A port that can't be listened on is said to be so, shown, and tried again.
func TestPortTaken(t *testing.T) {
	r := start(t, Options{})
	r.network.mu.Lock()
	r.network.taken = syscall.EADDRINUSE
	r.network.mu.Unlock()
	p := port(t, "tcp", 80, program(t, "tcp", "127.0.0.1:0", echo))
	var e *localapi.Error
	if err := r.Set(t.Context(), []Port{p}); !errors.As(err, &e) || e.Code != localapi.CodePortTaken || r.Failing(p) == nil {
		t.Errorf("%v", err)
	}
	if s := r.Status(); len(s) != 1 || s[0].Problem == nil || s[0].Problem.Code != localapi.CodePortTaken {
		t.Errorf("%+v", s)
	}
	r.network.mu.Lock()
	r.network.taken = nil
	r.network.mu.Unlock()
	r.changed <- struct{}{} // as after some seconds
	for r.Failing(p) != nil {
		runtime.Gosched()
	}
	exchange(t, r.dial(t, 80), "x")
}

// One peer can't take all connections, nor all peers more than there are.
func TestFlowsAreBounded(t *testing.T) {
	l := limiter{most: 3, mostOfPeer: 2, peers: make(map[netip.Addr]int)}
	a, b := netip.MustParseAddr("fd00::a"), netip.MustParseAddr("fd00::b")
	for i, c := range []struct {
		peer netip.Addr
		want bool
	}{{a, true}, {a, true}, {a, false}, {b, true}, {b, false}} {
		if l.add(c.peer) != c.want {
			t.Errorf("%d: not %v", i, c.want)
		}
	}
	l.done(a)
	if !l.add(b) || l.add(a) {
		t.Error("a place that became free")
	}
	if active, total, refused := l.counts(); active != 3 || total != 4 || refused != 3 {
		t.Errorf("%d now, %d so far, %d refused", active, total, refused)
	}
}

func TestUDP(t *testing.T) {
	r := start(t, Options{})
	u, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	r.set(t, port(t, "udp", 53, u.LocalAddr().String()))
	c, err := net.Dial("udp", r.network.where(53))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "question"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, from, err := u.ReadFrom(buf)
	if string(buf[:n]) != "question" || err != nil {
		t.Fatalf("%q %v", buf[:n], err)
	}
	if _, err := u.WriteTo([]byte("answer"), from); err != nil {
		t.Fatal(err)
	}
	if n, err = c.Read(buf); string(buf[:n]) != "answer" || err != nil {
		t.Errorf("%q %v", buf[:n], err)
	}
	if s := r.Status(); s[0].Active != 1 || s[0].RxBytes != 8 || s[0].TxBytes != 6 {
		t.Errorf("%+v", s)
	}
	r.set(t)
	if s := r.Status(); len(s) != 0 {
		t.Errorf("%+v", s)
	}
}

func TestParseTarget(t *testing.T) {
	for text, want := range map[string]string{
		"": "127.0.0.1:8080", "3000": "127.0.0.1:3000", "localhost:3000": "127.0.0.1:3000", ":3000": "127.0.0.1:3000", "[::1]:3000": "[::1]:3000",
		"127.0.0.2:1": "127.0.0.2:1", "[::ffff:127.0.0.1]:1": "127.0.0.1:1", "unix:/run/app.sock": "unix:/run/app.sock",
	} {
		got, err := ParseTarget(text, 8080)
		if err != nil || got.String() != want {
			t.Errorf("%q is %v, %v", text, got, err)
		}
		if again, err := ParseTarget(got.String(), 1); err != nil || again != got {
			t.Errorf("%q again is %v, %v", got, again, err)
		}
	}
	for _, text := range []string{"0", "65536", "example.com:80", "127.0.0.1", "[fe80::1%eth0]:80", "unix:", "unix:app.sock", "unix:/run/../app.sock", "unix:/run/a\x00b",
		"unix:/" + string(make([]byte, 200)), "unix:@abstract", "http://127.0.0.1:80", "80:", "1.2.3.4.5:80"} {
		if got, err := ParseTarget(text, 8080); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}

// FuzzParseTarget: what can be read is written in a way that means the same, and is never a name.
func FuzzParseTarget(f *testing.F) {
	for _, text := range []string{"", "80", "localhost:80", "[::1]:80", "unix:/run/x", "127.0.0.1:80", "[::ffff:1.2.3.4]:80"} {
		f.Add(text, uint16(80))
	}
	f.Fuzz(func(t *testing.T, text string, port uint16) {
		got, err := ParseTarget(text, port)
		if err != nil {
			return
		}
		if again, err := ParseTarget(got.String(), 1); err != nil || again != got {
			t.Errorf("%q is %v, and that is %v, %v", text, got, again, err)
		}
	})
}
