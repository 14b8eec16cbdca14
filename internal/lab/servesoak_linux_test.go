// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// echoScript answers each connection with what it was told.
const echoScript = `import socket, socketserver, sys
class H(socketserver.StreamRequestHandler):
    def handle(self): self.wfile.write(self.rfile.read())
address = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1"
class S(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
    allow_reuse_address, request_queue_size, daemon_threads = True, 1024, True
s = S((address, int(sys.argv[1])), H)
print("ready", flush=True)
s.serve_forever()`

// manyScript makes many short connections, one after the other in each of some threads, and says how many went right.
const manyScript = `import socket, sys, concurrent.futures
host, port, many = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def one(i):
    text = b"connection %d" % i
    with socket.create_connection((host, port), timeout=20) as s:
        s.sendall(text)
        s.shutdown(socket.SHUT_WR)
        got = b""
        while piece := s.recv(4096): got += piece
        return got == text
with concurrent.futures.ThreadPoolExecutor(16) as pool:
    print(sum(pool.map(one, range(many))))`

// held is how many goroutines a daemon has, and how many descriptors it and pilot forward have.
type held struct{ goroutines, descriptors int }

func (u *user) held(ctx context.Context, socket string) (held, error) {
	metrics := u.Run(ctx, u.as("curl", "-sS", "--unix-socket", socket, "http://pilot/metrics")...)
	number := regexp.MustCompile(`(?m)^go_goroutines (\d+)`).FindStringSubmatch(metrics.Stdout)
	if number == nil {
		return held{}, fmt.Errorf("no metrics: %v", metrics)
	}
	var h held
	h.goroutines, _ = strconv.Atoi(number[1])
	for _, pid := range u.pilots() {
		if fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid)); err == nil {
			h.descriptors += len(fds)
		}
	}
	return h, nil
}

// soakEnv asks for longer soaks, soakLimit bounds them.
const (
	soakEnv   = "PILOT_LAB_SOAK"
	soakLimit = 10 * time.Minute
)

// soakCount is how many connections a soak makes each way.
func soakCount(t *testing.T, otherwise int) int {
	t.Helper()
	text := os.Getenv(soakEnv)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q", soakEnv, text)
	}
	return n
}

// Thousands of short connections through pilot serve and pilot forward leave no goroutine, descriptor or port behind.
func TestServeSoak(t *testing.T) {
	many := soakCount(t, 3000)
	ctx := deadline(t, soakLimit)
	m, u := openServed(ctx, t)
	for _, h := range []struct {
		*Host
		as func(...string) []string
	}{{m.a, asIs}, {m.b, u.as}} {
		p := h.Start(h.as("python3", "-c", echoScript, "9000")...)
		m.wait("ready", p)
	}
	m.a.Must(ctx, Binary(t), "serve", "9001=9000")
	u.Must(ctx, u.as(u.pilot, "serve", "9001=9000")...)
	m.wait("forwarding", u.Start(u.as(u.pilot, "forward", "9002=planner:9001")...))
	connect := func(many int) {
		for _, c := range []struct {
			h    *Host
			host string
			port string
			as   func(...string) []string
		}{{m.a, "indexer", "9001", asIs}, {m.b, "127.0.0.1", "9002", u.as}} {
			if out := c.h.Must(ctx, c.as("python3", "-c", manyScript, c.host, c.port, strconv.Itoa(many))...); strings.TrimSpace(out) != strconv.Itoa(many) {
				t.Errorf("%s to %s: %s of %d connections went right", c.h.Name(), c.host, out, many)
			}
		}
	}
	connect(20) // what stays is there now
	before, err := u.held(ctx, u.socket())
	if err != nil {
		t.Fatal(err)
	}
	connect(many)
	var after held
	Eventually(t, 30*time.Second, func(ctx context.Context) error {
		if after, err = u.held(ctx, u.socket()); err != nil {
			return err
		}
		if after.goroutines > before.goroutines+3 || after.descriptors > before.descriptors+3 {
			return fmt.Errorf("before %+v, after %+v", before, after)
		}
		return nil
	})
	t.Logf("%d connections in each direction: before %+v, after %+v", many, before, after)
	// On the host with an interface nothing of them is left but what the kernel keeps of closed ones.
	if out := m.a.Must(ctx, "ss", "-Htn", "state", "connected", "exclude", "time-wait", "exclude", "fin-wait-2", "( sport = :9001 or dport = :9001 )"); strings.TrimSpace(out) != "" {
		t.Errorf("connections that are left:\n%s", out)
	}
}

// insideScript is a program in a sandbox that connects to places, and listens itself: a few times, and when a file is there
// many times more.
const insideScript = `import os, subprocess, sys, time
echo, many, count, go = sys.argv[1:5]
server = subprocess.Popen([sys.executable, "-c", echo, "9000", "::"], stdout=subprocess.PIPE, text=True)
server.stdout.readline()
def connect(n):
    for place in sys.argv[5:]:
        got = subprocess.run([sys.executable, "-c", many, *place.split(), n], capture_output=True, text=True)
        print(place, got.stdout.strip(), got.stderr, flush=True)
connect("20")
print("warm", flush=True)
while not os.path.exists(go): time.sleep(0.1)
connect(count)
print("done", flush=True)
server.wait()`

// Thousands of short connections of a sandboxed program, to an agent and to the world, and to it, leave nothing in its launcher.
func TestSandboxSoak(t *testing.T) {
	many := soakCount(t, 1000)
	ctx := deadline(t, soakLimit)
	m, world := openWorld(t)
	found(t, m.a, "planner")
	u := m.b.user()
	for _, h := range []*Host{m.a, world} {
		m.wait("ready", h.Start("python3", "-c", echoScript, "9000", "::"))
	}
	flag := u.home + "/go"
	count := strconv.Itoa(many)
	invite := u.invite(t, m.a)
	inside := u.Start(u.run("crawler", "--invite-file", invite, "--egress", "5.5.5.80:9000", "--",
		"python3", "-c", insideScript, echoScript, manyScript, count, flag, "planner 9000", "5.5.5.80 9000")...)
	m.wait("warm", inside)
	from := func(n string) {
		t.Helper()
		if out := m.a.Must(ctx, "python3", "-c", manyScript, "crawler", "9000", n); strings.TrimSpace(out) != n {
			t.Errorf("to the sandbox: %s of %s connections went right", strings.TrimSpace(out), n)
		}
	}
	from("20")
	socket := u.state("crawler") + "/pilot.sock"
	before, err := u.held(ctx, socket)
	if err != nil {
		t.Fatal(err)
	}
	u.must("touch", flag)
	from(count)
	Eventually(t, soakLimit, func(context.Context) error {
		if !strings.Contains(inside.Logs(), "done") {
			return errors.New("not done")
		}
		return nil
	})
	for _, place := range []string{"planner 9000 ", "5.5.5.80 9000 "} {
		if !strings.Contains(inside.Logs(), place+count) {
			t.Errorf("not all connections went right:\n%s", inside.Logs())
		}
	}
	var after held
	Eventually(t, 30*time.Second, func(ctx context.Context) error {
		if after, err = u.held(ctx, socket); err != nil {
			return err
		}
		if after.goroutines > before.goroutines+3 || after.descriptors > before.descriptors+3 {
			return fmt.Errorf("before %+v, after %+v", before, after)
		}
		return nil
	})
	t.Logf("%d connections each way: before %+v, after %+v", many, before, after)
}
