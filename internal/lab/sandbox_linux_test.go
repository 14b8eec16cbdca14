// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// user is somebody without privileges on a host.
type user struct {
	*Host
	home, pilot string
}

// userID is that of all of them.
const userID = "1234"

// User lets somebody without privileges use a host, whose /dev/net/tun everybody may open as on most systems.
func (h *Host) user() *user {
	h.lab.tb.Helper()
	u := &user{Host: h, home: "/var/lib/user", pilot: "/var/lib/bin/pilot"}
	h.must("mkdir", "-p", u.home, "/var/lib/bin")
	h.must("chown", userID+":"+userID, u.home)
	h.must("cp", Binary(h.lab.tb), u.pilot)
	h.must("mkdir", "-p", "/dev/net")
	h.must("mount", "-t", "tmpfs", "tmpfs", "/dev/net")
	h.must("mknod", "-m", "666", "/dev/net/tun", "c", "10", "200")
	return u
}

// as is the command line by which the user runs something.
func (u *user) as(args ...string) []string {
	return append([]string{"setpriv", "--reuid", userID, "--regid", userID, "--clear-groups", "--inh-caps=-all",
		"env", "-C", u.home, "HOME=" + u.home}, args...)
}

// run is the command line by which the user runs a program as an agent of its own.
func (u *user) run(name string, args ...string) []string {
	return u.as(append([]string{u.pilot, "run", "--name", name}, args...)...)
}

// state is where the state of the user's agent is.
func (u *user) state(name string) string { return u.home + "/.local/state/pilot/run/" + name }

// invite puts a fresh invite where the user can read it.
func (u *user) invite(t testing.TB, by *Host) string {
	t.Helper()
	made := pilot[localapi.InviteResult](t, by, "invite")
	if err := os.WriteFile(u.Path(u.home+"/invite"), []byte(made.Invite), 0o644); err != nil {
		t.Fatal(err)
	}
	return u.home + "/invite"
}

// trusts lets two agents that a user runs consent to each other.
func (u *user) trusts(t testing.TB, name, other string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	u.Must(ctx, u.as(u.pilot, "trust", other, "--state", u.state(name))...)
}

// Two programs in sandboxes talk by name, on one host and across two, and to an agent with an interface of its own.
func TestSandboxTalks(t *testing.T) {
	ctx := deadline(t, time.Minute)
	m := openTrio(t, "setpriv")
	found(t, m.a, "planner")
	b, c := m.b.user(), m.c.user()
	m.a.WriteFile("index.html", "the plan", 0o644)
	serve(m.a)
	if out := m.b.Must(ctx, b.run("researcher", "--invite-file", b.invite(t, m.a), "--", "curl", "-sS", "--max-time", "10", "http://planner/")...); out != "the plan" {
		t.Errorf("curl in a sandbox: %q", out)
	}
	// It is a member now, and serves; so does another one on this host and one on the next.
	m.b.must("mkdir", b.home+"/site")
	m.b.must("sh", "-c", "printf findings > "+b.home+"/site/index.html")
	web := b.Start(b.run("researcher", "--", "python3", "-m", "http.server", "--bind", "::", "--directory", "site", "80")...)
	m.wait("Serving HTTP", web)
	get(t, m.a, "http://researcher/", "findings")
	for _, u := range []*user{b, c} {
		name := "reader-" + u.Name()
		p := u.Start(u.run(name, "--invite-file", u.invite(t, m.a), "--", "sh", "-c",
			"echo ready; until curl -sS --fail --max-time 3 http://researcher/; do sleep 0.2; done")...)
		m.wait("ready", p)
		u.trusts(t, name, "researcher")
		b.trusts(t, "researcher", name)
		m.wait("findings", p)
	}
}

// worldScript is the world outside: a web server at its port, and a DNS server for names under test that says what a file
// says, a line with a name and its address.
const worldScript = `
import socket, sys, threading, http.server, ipaddress
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"the world")
    def log_message(self, *a): pass
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
for port in (80, 443, 8080):
    server = Server(("::", port), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
def echo():
    u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    u.bind(("::", 7))
    while True:
        d, who = u.recvfrom(65535)
        u.sendto(d, who)
threading.Thread(target=echo, daemon=True).start()
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.bind(("::", 53))
print("answering", flush=True)
while True:
    q, who = s.recvfrom(4096)
    end, labels = 12, []
    while q[end]:
        labels.append(q[end+1:end+1+q[end]].decode())
        end += q[end] + 1
    end += 5
    kind = int.from_bytes(q[end-4:end-2], "big")
    name, answers = ".".join(labels), []
    for line in open(sys.argv[1]):
        known, address = line.split()
        a = ipaddress.ip_address(address)
        if known == name and kind == (1 if a.version == 4 else 28):
            answers.append(b"\xc0\x0c" + q[end-4:end] + b"\x00\x00\x00\x01" + len(a.packed).to_bytes(2, "big") + a.packed)
    s.sendto(q[:2] + b"\x81\x80\x00\x01" + len(answers).to_bytes(2, "big") + b"\x00\x00\x00\x00" + q[12:end] + b"".join(answers), who)
`

// worldNames is what that DNS server says.
const worldNames = `example.test 5.5.5.80
www.example.test 5.5.5.80
other.test 5.5.5.80
six.test 2600:5::80
rebound.test 127.0.0.1
inside.test 10.7.7.7
metadata.test 169.254.169.254
host.test 5.5.5.11
mapped.test ::ffff:127.0.0.1
`

// openWorld is a trio whose hosts have addresses in the world, and a server there.
func openWorld(t *testing.T) (m *trio, world *Host) {
	m = openTrio(t, "setpriv", "curl", "python3", "dig")
	world = m.Host("world")
	world.Connect(m.wan, "5.5.5.80/24")
	world.must("ip", "addr", "add", "2600:5::80/64", "dev", "eth0", "nodad")
	world.must("ip", "addr", "add", "10.7.7.7/32", "dev", "lo")
	for i, h := range []*Host{m.a, m.b, m.c} {
		h.must("ip", "addr", "add", fmt.Sprintf("5.5.5.%d/24", 10+i), "dev", "eth0")
		h.must("ip", "addr", "add", fmt.Sprintf("2600:5::%d/64", 10+i), "dev", "eth0", "nodad")
		h.must("ip", "route", "add", "10.7.7.7/32", "via", "5.5.5.80")
		h.Resolvers("5.5.5.80")
	}
	names := world.WriteFile("names", worldNames, 0o644)
	m.wait("answering", world.Start("python3", "-c", worldScript, names))
	return m, world
}

// What a program reaches outside of its network is what the rules say, and what it doesn't fails at once.
func TestSandboxEgress(t *testing.T) {
	ctx := deadline(t, time.Minute)
	m, _ := openWorld(t)
	found(t, m.a, "planner")
	b := m.b.user()
	m.b.must("mkdir", "-p", b.home)
	invite := b.invite(t, m.a)
	try := func(rules, url string) Result {
		t.Helper()
		r := m.b.Run(ctx, b.run("crawler", "--invite-file", invite, "--egress", rules, "--quiet", "--", "curl", "-sS", "--max-time", "5", url)...)
		t.Logf("%s: %s: %d %s%s", rules, url, r.Code, r.Stdout, r.Stderr)
		return r
	}
	for _, c := range []struct {
		rules, url string
		code       int // of curl: 6 the name is not resolved, 7 the connection fails
	}{
		{"none", "http://example.test/", 6},
		{"none", "http://5.5.5.80/", 7},
		{"none", "http://[2600:5::80]/", 7},
		{"all", "http://example.test/", 0},
		{"all", "http://[2600:5::80]/", 0},
		{"all", "http://six.test/", 0},
		{"all", "http://inside.test/", 6},
		{"all", "http://10.7.7.7/", 7},
		{"10.0.0.0/8", "http://10.7.7.7/", 0},
		{"all,10.0.0.0/8", "http://inside.test/", 0},
		{"example.test:443", "http://example.test:443/", 0},
		{"example.test:443", "http://example.test/", 7},
		{"example.test:443", "http://www.example.test:443/", 6},
		{"example.test:443", "http://5.5.5.80:443/", 7},
		{"*.example.test:443", "http://www.example.test:443/", 0},
		{"rebound.test,metadata.test,mapped.test,inside.test,host.test", "http://rebound.test/", 6},
		{"rebound.test,metadata.test,mapped.test,inside.test,host.test", "http://metadata.test/", 6},
		{"rebound.test,metadata.test,mapped.test,inside.test,host.test", "http://mapped.test/", 6},
		{"rebound.test,metadata.test,mapped.test,inside.test,host.test", "http://inside.test/", 6},
		{"rebound.test,metadata.test,mapped.test,inside.test,host.test", "http://host.test/", 6},
		{"all", "http://5.5.5.11/", 7},
		{"5.5.5.0/24", "http://5.5.5.80/", 0},
		{"5.5.5.80:8080", "http://5.5.5.80:8080/", 0},
		{"5.5.5.80:8080", "http://5.5.5.80/", 7},
	} {
		if r := try(c.rules, c.url); r.Code != c.code {
			t.Errorf("--egress %s, %s: %v; status %d expected", c.rules, c.url, r, c.code)
		}
	}
}

// interruptScript runs a command on a terminal of its own, presses Ctrl-C when it says that it is ready, and shows what it
// said and how it ended.
const interruptScript = `
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
said = b""
while True:
    try:
        more = os.read(terminal, 4096)
    except OSError:
        break
    if not more:
        break
    if b"ready" in more and b"ready" not in said:
        os.write(terminal, b"\x03")
    said += more
print(said.decode(), "status", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
`

// countScript counts the SIGINTs that come within a while after the first.
const countScript = `
import signal, time
count = 0
def more(*a):
    global count
    count += 1
signal.signal(signal.SIGINT, more)
print("ready", flush=True)
while count == 0:
    time.sleep(0.05)
time.sleep(0.5)
print("interrupted", count, "times")
raise SystemExit(9)
`

// A program's signals, terminal and exit status pass through, and nothing is left of it.
func TestSandboxLife(t *testing.T) {
	ctx := deadline(t, time.Minute)
	m := openTrio(t, "setpriv", "python3", "ps")
	found(t, m.a, "planner")
	b := m.b.user()
	invite := b.invite(t, m.a)
	m.b.must("sh", "-c", "printf 'no program' > "+b.home+"/text; chmod 644 "+b.home+"/text")
	for _, c := range []struct {
		program []string
		code    int
	}{
		{[]string{"sh", "-c", "exit 7"}, 7},
		{[]string{"true"}, 0},
		{[]string{"sh", "-c", "kill -TERM $$"}, 143},
		{[]string{"sh", "-c", "(sleep 1000 &); exit 3"}, 3}, // what it leaves running ends with it
		{[]string{"/nowhere/at/all"}, 127},
		{[]string{"./text"}, 126},
	} {
		r := m.b.RunInput(ctx, "", b.run("worker", append([]string{"--invite-file", invite, "--"}, c.program...)...)...)
		if r.Code != c.code {
			t.Errorf("%q: %v; status %d expected", c.program, r, c.code)
		}
	}
	if r := m.b.RunInput(ctx, "some input", b.run("worker", "--", "cat")...); r.Stdout != "some input" || !r.OK() {
		t.Errorf("standard input: %v", r)
	}
	if r := m.b.Run(ctx, b.run("stranger", "--json", "--", "true")...); r.Code != 125 || r.Stdout != "" || refusal(t, r).Hint == "" {
		t.Errorf("without an invite: %v", r)
	}

	waiting := m.b.Start(b.run("worker", "--", "sh", "-c", `trap 'echo got it; exit 4' TERM USR1; echo ready; while :; do sleep 0.1; done`)...)
	m.wait("ready", waiting)
	signalTo(t, launcher(t, m.b), syscall.SIGTERM)
	<-waiting.done
	if !strings.Contains(waiting.Logs(), "got it") || waiting.cmd.ProcessState.ExitCode() != 4 {
		t.Errorf("SIGTERM to the launcher: %v, %s", waiting.cmd.ProcessState, waiting.Logs())
	}

	out := m.b.Must(ctx, append(b.as("python3", "-c", interruptScript), b.pilot, "run", "--name", "worker", "--", "python3", "-c", countScript)...)
	if !strings.Contains(out, "interrupted 1 times") || !strings.Contains(out, "status 9") {
		t.Errorf("Ctrl-C: %s", out)
	}

	// The launcher is killed: everything ends with it.
	waiting = m.b.Start(b.run("worker", "--", "sh", "-c", "setsid sleep 1000 & echo ready; exec sleep 1000")...)
	m.wait("ready", waiting)
	signalTo(t, launcher(t, m.b), syscall.SIGKILL)
	<-waiting.done
	Eventually(t, 10*time.Second, func(context.Context) error {
		if left := m.b.Processes(); len(left) > 0 {
			return fmt.Errorf("left behind: %v", left)
		}
		return nil
	})
	if left := m.b.must("ip", "-br", "link"); strings.Contains(left, "pilot") {
		t.Errorf("left behind: %s", left)
	}
}

func signalTo(t *testing.T, pid int, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, s); err != nil {
		t.Fatal(err)
	}
}

// launcher is the process of pilot run on a host.
func launcher(t *testing.T, h *Host) int {
	t.Helper()
	for pid, command := range h.Processes() {
		if strings.Contains(command, "pilot run ") && !strings.HasPrefix(command, "setpriv") && !strings.HasPrefix(command, "env") {
			return pid
		}
	}
	t.Fatal("no pilot run")
	return 0
}

// An agent that is ephemeral is nobody's any more when its program has ended.
func TestSandboxEphemeral(t *testing.T) {
	m := openTrio(t, "setpriv")
	found(t, m.a, "planner")
	b := m.b.user()
	m.b.must("mkdir", b.home+"/tmp")
	m.b.must("chown", userID+":"+userID, b.home+"/tmp")
	run := func() *Process {
		return m.b.Start(b.as("TMPDIR="+b.home+"/tmp", b.pilot, "run", "--ephemeral", "--name", "temp", "--invite-file", b.invite(t, m.a),
			"--", "sh", "-c", "ls "+b.home+"/tmp; echo ready; read -r line < "+b.home+"/pipe")...)
	}
	m.b.must("mkfifo", "-m", "666", b.home+"/pipe")
	first := run()
	m.wait("ready", first)
	if who := pilot[localapi.Agent](t, m.a, "whois", "temp"); who.Trust != localapi.TrustMutual {
		t.Errorf("while it runs: %+v", who)
	}
	if !strings.Contains(m.b.must("ls", b.home+"/tmp"), "pilot-run-") || strings.Contains(first.Logs(), "agent.key") {
		t.Errorf("its folder: %s", first.Logs())
	}
	m.b.must("sh", "-c", "echo > "+b.home+"/pipe")
	<-first.done
	if left := m.b.must("find", b.home, "-not", "-type", "d"); strings.Contains(left, "key") || strings.Contains(left, "node.json") {
		t.Errorf("left behind: %s", left)
	}
	if left := m.b.must("ls", b.home+"/tmp"); left != "" {
		t.Errorf("left behind: %s", left)
	}
	Eventually(t, 5*time.Second, func(context.Context) error {
		for _, p := range pilot[localapi.Status](t, m.a, "status").Peers {
			if p.Name == "temp" && (p.Problem == nil || p.Problem.Code != localapi.CodeRevoked) {
				return fmt.Errorf("it is still a member: %+v", p)
			}
		}
		return nil
	})
	// Its name is free for the next.
	second := run()
	m.wait("ready", second)
	m.b.must("sh", "-c", "echo > "+b.home+"/pipe")
	<-second.done
	if code := second.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("another one by that name: status %d: %s", code, second.Logs())
	}
}
