// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/tun"
)

// A host without an interface: packets are handled in the daemon, which says so, and remembers it.
func TestModeIsChosen(t *testing.T) {
	denied := &tun.OpenError{Name: "pilot0", Err: fs.ErrPermission, Hint: "run as root"}
	for _, c := range []struct {
		name   string
		system memorySystem
		want   string
	}{
		{"no device", memorySystem{noTUN: &tun.OpenError{Name: "pilot0", Err: tun.ErrNoTUN}}, localapi.TUNUserspace},
		{"not permitted", memorySystem{noTUN: denied}, localapi.TUNUserspace},
		{"no address permitted", memorySystem{refuses: fmt.Errorf("set address: %w", syscall.EACCES)}, localapi.TUNUserspace},
		{"an interface", memorySystem{}, localapi.TUNKernel},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := startDaemonOn(t, stateDir(t), &c.system)
			request := localapi.UpRequest{Name: "planner", CoordinatorListen: listenLoopback}
			up, err := d.Up(t.Context(), request)
			if err != nil || up.TUN != c.want || (up.TUNWhy == "") == (c.want == localapi.TUNUserspace) {
				t.Fatalf("%+v %v", up, err)
			}
			s, err := d.Status(t.Context())
			if err != nil || s.Self.TUN != c.want || c.want == localapi.TUNUserspace && (s.Self.DNS != "none" || s.Self.Interface != userspaceName) {
				t.Errorf("%+v %v", s.Self, err)
			}
			other := map[string]string{localapi.TUNKernel: localapi.TUNUserspace, localapi.TUNUserspace: localapi.TUNKernel}[c.want]
			if _, err := d.Up(t.Context(), localapi.UpRequest{TUN: other}); code(err) != localapi.CodeConflict {
				t.Errorf("another mode while it is up: %v", err)
			}
			if _, err := d.Up(t.Context(), localapi.UpRequest{TUN: "bridge"}); code(err) != localapi.CodeUsage {
				t.Errorf("no mode: %v", err)
			}
			d.end()
			// An interface that is there the next time changes nothing, and is taken if that is asked for.
			again := startDaemon(t, d.dir)
			up, err = again.Up(t.Context(), localapi.UpRequest{})
			if err != nil || up.TUN != c.want {
				t.Errorf("after a restart: %+v %v", up, err)
			}
			if _, err := again.Down(t.Context()); err != nil {
				t.Fatal(err)
			}
			again.end()
			last := startDaemon(t, d.dir)
			if up, err = last.Up(t.Context(), localapi.UpRequest{TUN: localapi.TUNAuto}); err != nil || up.TUN != localapi.TUNKernel {
				t.Errorf("chosen anew: %+v %v", up, err)
			}
		})
	}
}

// Where the interface is insisted on, its absence is an error that names the way out.
func TestKernelModeIsInsistedOn(t *testing.T) {
	d := startDaemonOn(t, stateDir(t), &memorySystem{noTUN: &tun.OpenError{Name: "pilot0", Err: tun.ErrNoTUN, Hint: "modprobe tun"}})
	_, err := d.Up(t.Context(), localapi.UpRequest{TUN: localapi.TUNKernel, CoordinatorListen: listenLoopback})
	var e *localapi.Error
	if !errors.As(err, &e) || e.Code != localapi.CodeNoTUN || e.Hint != "modprobe tun; or do without: pilot up --tun=userspace" {
		t.Errorf("%#v", err)
	}
}

// userspacePair is a planner and a warehouse that trust each other, and an auditor whom nobody trusts.
func userspacePair(t *testing.T) (planner, warehouse, auditor *daemon) {
	t.Helper()
	ctx := t.Context()
	planner, warehouse, auditor = startDaemon(t, stateDir(t)), startDaemon(t, stateDir(t)), startDaemon(t, stateDir(t))
	made, err := planner.Up(ctx, localapi.UpRequest{Name: "planner", CoordinatorListen: listenLoopback, TUN: localapi.TUNUserspace})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := warehouse.Up(ctx, localapi.UpRequest{Name: "warehouse", Invite: made.Invite, TUN: localapi.TUNUserspace}); err != nil {
		t.Fatal(err)
	}
	second, err := planner.Invite(ctx, localapi.InviteRequest{NoTrust: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := auditor.Up(ctx, localapi.UpRequest{Name: "auditor", Invite: second.Invite, TUN: localapi.TUNUserspace}); err != nil {
		t.Fatal(err)
	}
	return planner, warehouse, auditor
}

// Agents without an interface talk over TCP and UDP by name, and know who calls.
func TestUserspaceSockets(t *testing.T) {
	ctx := t.Context()
	planner, warehouse, auditor := userspacePair(t)
	l, err := planner.node.Listen(ctx, "tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type call struct {
		from localapi.Agent
		err  error
	}
	calls := make(chan call)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(calls)
				return
			}
			from, err := planner.node.Caller(c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr())
			calls <- call{from, err}
			_, _ = io.WriteString(c, "the plan")
			c.Close()
		}
	}()
	for _, name := range []string{"planner", "Planner.", "planner.pilot.internal", addressOf(t, planner).String()} {
		address := net.JoinHostPort(name, "80")
		c, err := warehouse.node.DialContext(ctx, "tcp", address)
		if err != nil {
			t.Fatalf("dial %s: %v", address, err)
		}
		if got := <-calls; got.err != nil || got.from.Name != "warehouse" || got.from.Trust != localapi.TrustMutual {
			t.Errorf("the caller is %+v %v", got.from, got.err)
		}
		if text, err := io.ReadAll(c); string(text) != "the plan" || err != nil {
			t.Errorf("%s: %q %v", address, text, err)
		}
		c.Close()
	}
	checkRefusals(ctx, t, warehouse, auditor, addressOf(t, planner))
	p, err := planner.node.ListenPacket(ctx, "udp", "planner:5000")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	u, err := warehouse.node.DialContext(ctx, "udp", "planner:5000")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if _, err := u.Write([]byte("over UDP")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	if n, from, err := p.ReadFrom(buf); err != nil || string(buf[:n]) != "over UDP" || from.(*net.UDPAddr).AddrPort().Addr() != addressOf(t, warehouse) {
		t.Errorf("%q from %v: %v", buf[:n], from, err)
	}
}

func addressOf(t *testing.T, d *daemon) netip.Addr {
	t.Helper()
	s, err := d.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s.Self.Address
}

// checkRefusals asks for what must not be reached, and looks at the errors.
func checkRefusals(ctx context.Context, t *testing.T, warehouse, auditor *daemon, planner netip.Addr) {
	t.Helper()
	var noName *net.DNSError
	for _, c := range []struct {
		from    *daemon
		address string
		is      func(error) bool
	}{
		{warehouse, "planner:81", func(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }},
		{warehouse, "nobody:80", func(err error) bool { return errors.As(err, &noName) && noName.IsNotFound }},
		{warehouse, "no body:80", func(err error) bool { return errors.As(err, &noName) && noName.IsNotFound }},
		{warehouse, "example.com:80", func(err error) bool { return errors.Is(err, ErrNotInNetwork) }},
		{warehouse, "planner.other.internal:80", func(err error) bool { return errors.Is(err, ErrNotInNetwork) }},
		{warehouse, "127.0.0.1:80", func(err error) bool { return errors.Is(err, ErrNotInNetwork) }},
		{warehouse, "[::ffff:127.0.0.1]:80", func(err error) bool { return errors.Is(err, ErrNotInNetwork) }},
		{warehouse, "[" + planner.String() + "%lo]:80", func(err error) bool { return errors.Is(err, ErrNotInNetwork) }},
		{warehouse, "auditor:80", func(err error) bool { return errors.Is(err, syscall.EACCES) && code(err) == localapi.CodeNotTrusted }},
		{auditor, "warehouse:80", func(err error) bool { return errors.Is(err, syscall.EACCES) && code(err) == localapi.CodeNotTrusted }},
		{auditor, netip.AddrPortFrom(planner, 80).String(), func(err error) bool { return errors.Is(err, syscall.EACCES) }},
		{warehouse, "planner", func(err error) bool { return err != nil }},
		{warehouse, "planner:http", func(err error) bool { return err != nil }},
	} {
		conn, err := c.from.node.DialContext(ctx, "tcp", c.address)
		if err == nil {
			conn.Close()
		}
		if !c.is(err) {
			t.Errorf("dial %s: %v", c.address, err)
		}
	}
	if _, err := warehouse.node.DialContext(ctx, "sctp", "planner:80"); err == nil {
		t.Error("a network that there is not")
	}
	if _, err := warehouse.node.Listen(ctx, "tcp", "planner:80"); err == nil {
		t.Error("listening on another's address")
	}
	if _, err := warehouse.node.Caller(netip.MustParseAddr("fd00::1")); code(err) != localapi.CodeNotFound {
		t.Errorf("an unknown caller: %v", err)
	}
}
