// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"

	"strings"
	"syscall"
	"testing"

	"github.com/pilot-protocol/pilot/node/localapi"
)

func TestParseForward(t *testing.T) {
	here := netip.MustParseAddrPort
	for arg, want := range map[string]forwardedPort{
		"5432=warehouse:5432":                  {"tcp", here("127.0.0.1:5432"), "warehouse", 5432},
		"warehouse:5432":                       {"tcp", here("127.0.0.1:5432"), "warehouse", 5432},
		"tcp:0=warehouse:22":                   {"tcp", here("127.0.0.1:0"), "warehouse", 22},
		"0.0.0.0:80=planner:8080":              {"tcp", here("0.0.0.0:80"), "planner", 8080},
		"[::1]:80=[fd00::1]:8080":              {"tcp", here("[::1]:80"), "fd00::1", 8080},
		"udp:5353=warehouse.pilot.internal:53": {"udp", here("127.0.0.1:5353"), "warehouse.pilot.internal", 53},
		"udp:127.0.0.2:5353=warehouse:53":      {"udp", here("127.0.0.2:5353"), "warehouse", 53},
	} {
		if got, err := parseForward(arg); err != nil || got != want {
			t.Errorf("%s: %+v %v", arg, got, err)
		}
	}
	for _, arg := range []string{"", "5432", "5432=", "=", "5432=warehouse", "5432=warehouse:0", "5432=warehouse:http", "5432=:80", "x=warehouse:80",
		"localhost:80=warehouse:80", "65536=warehouse:80", "udp:53", "1.2.3:80=warehouse:80"} {
		if got, err := parseForward(arg); err == nil {
			t.Errorf("%q is %+v", arg, got)
		}
	}
}

// forwards runs pilot forward until the test ends, and returns where it listens and what it says.
func forwards(t *testing.T, args ...string) (at []netip.AddrPort, said *bufio.Scanner) {
	t.Helper()
	r := newRunning(t, &fakeDaemon{state: localapi.StateUp})
	outs, out := io.Pipe()
	errs, errw := io.Pipe()
	r.stdout, r.stderr = out, errw
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan int, 1)
	go func() {
		ended <- r.run(ctx, append([]string{"pilot", "forward", "--json"}, args...))
		out.Close()
		errw.Close()
	}()
	said = bufio.NewScanner(errs)
	for range args {
		if !said.Scan() || !strings.HasPrefix(said.Text(), "forwarding ") {
			t.Fatalf("it says %q", said.Text())
		}
	}
	var result forwardResult
	if err := json.NewDecoder(outs).Decode(&result); err != nil {
		t.Fatal(err)
	}
	for _, f := range result.Forwarded {
		at = append(at, f.Listen)
	}
	t.Cleanup(func() {
		cancel()
		for said.Scan() {
			t.Logf("it said: %s", said.Text())
		}
		if status := <-ended; status != exitInterrupted {
			t.Errorf("exit status %d", status)
		}
	})
	return at, said
}

// Several ports at once, TCP and UDP; each connection ends by halves.
func TestForward(t *testing.T) {
	at, said := forwards(t, "0=warehouse:5432", "udp:0=warehouse:53", "127.0.0.1:0=warehouse:81")
	for range 3 {
		c, err := net.Dial("tcp", at[0].String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "question"); err != nil {
			t.Fatal(err)
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(c); string(text) != "hello from warehouse\nquestion" || err != nil {
			t.Errorf("%q %v", text, err)
		}
		c.Close()
	}
	u, err := net.Dial("udp", at[1].String())
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	for _, text := range []string{"one", "two"} {
		if _, err := io.WriteString(u, text); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		if n, err := u.Read(buf); string(buf[:n]) != "echo: "+text || err != nil {
			t.Errorf("%q %v", buf[:n], err)
		}
	}
	// A connection that the agent refuses is reset, and the reason is said.
	c, err := net.Dial("tcp", at[2].String())
	if err == nil {
		_, err = c.Read(make([]byte, 1))
		c.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the program meets %v", err)
	}
	if !said.Scan() || !strings.Contains(said.Text(), "nothing listens there") {
		t.Errorf("it says %q", said.Text())
	}
}

// What can't work is said before anything is listened on.
func TestForwardFails(t *testing.T) {
	r := newRunning(t, &fakeDaemon{state: localapi.StateUp})
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, c := range []struct {
		args   []string
		status int
	}{
		{[]string{"forward"}, localapi.ExitUsage},
		{[]string{"forward", "warehouse"}, localapi.ExitUsage},
		{[]string{"forward", "0=warehouse:80", "0=nobody:80"}, localapi.ExitNotFound},
		{[]string{"forward", "0=impostor:80"}, localapi.ExitKeyMismatch},
		{[]string{"forward", taken.Addr().String() + "=warehouse:80"}, localapi.ExitConflict},
	} {
		if status := r.pilot(c.args...); status != c.status {
			t.Errorf("%v: exit status %d: %s", c.args, status, r.err.String())
		}
	}
}
