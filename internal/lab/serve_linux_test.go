// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// headersScript answers each request on a port of 127.0.0.1 with the headers that it had, as Python's server knows them.
const headersScript = `import http.server, json, sys
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(sorted(self.headers.items())).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *a): pass
s = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), H)
print("ready", flush=True)
s.serve_forever()`

// pilotOf runs a user's pilot with --json and decodes its answer.
func pilotOf[T any](ctx context.Context, t *testing.T, u *user, args ...string) T {
	t.Helper()
	var answer T
	out := u.Must(ctx, u.as(append([]string{u.pilot, "--json"}, args...)...)...)
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		t.Fatalf("%s: %v in %s", u.Name(), err, out)
	}
	return answer
}

// openServed is planner with an interface on one host, and indexer on another, of somebody without privileges and with none.
func openServed(ctx context.Context, t *testing.T, programs ...string) (m *trio, u *user) {
	t.Helper()
	m = openTrio(t, append(programs, "setpriv")...)
	found(t, m.a, "planner")
	u = m.b.user()
	m.b.must("rm", "/dev/net/tun")
	up := pilotOf[localapi.UpResult](ctx, t, u, "up", "--name", "indexer", "--tun=userspace", "--invite-file", u.invite(t, m.a))
	if up.TUN != localapi.TUNUserspace {
		t.Fatalf("the answer to up: %+v", up)
	}
	return m, u
}

// redis runs a server on a port of 127.0.0.1.
func redis(h *Host, as func(...string) []string, port int) {
	p := h.Start(as("redis-server", "--bind", "127.0.0.1", "--port", strconv.Itoa(port), "--save", "", "--appendonly", "no", "--dir", "/tmp")...)
	h.lab.wait("Ready to accept connections", p)
}

func asIs(args ...string) []string { return args }

// What an agent without an interface publishes is reached by unmodified programs, and what others publish is reached from
// it, by pilot forward and pilot nc: HTTP with the caller's name, redis both ways, git over ssh.
func TestServeForwardAndNC(t *testing.T) {
	ctx := deadline(t, time.Minute)
	m, u := openServed(ctx, t, "git", "ssh", "sshd", "ssh-keygen", "redis-server", "redis-cli")
	site := u.Start(u.as("python3", "-c", headersScript, "8080")...)
	m.wait("ready", site)
	u.Must(ctx, u.as(u.pilot, "serve", "http:80=8080")...)
	checkHeaders(ctx, t, m.a)

	redis(m.a, asIs, 6379)
	redis(m.b, u.as, 6380)
	m.a.Must(ctx, Binary(t), "serve", "6379") // at an interface
	u.Must(ctx, u.as(u.pilot, "serve", "6380")...)
	fromUser := u.Start(u.as(u.pilot, "forward", "7000=planner:6379")...)
	fromPlanner := m.a.Start(Binary(t), "forward", "7001=indexer:6380")
	m.wait("forwarding tcp:127.0.0.1:7000 to planner:6379", fromUser)
	m.wait("forwarding tcp:127.0.0.1:7001 to indexer:6380", fromPlanner)
	for _, c := range []struct {
		h    *Host
		args []string
	}{{m.b, u.as("redis-cli", "-p", "7000")}, {m.a, []string{"redis-cli", "-p", "7001"}}, {m.a, []string{"redis-cli", "-h", "indexer", "-p", "6380"}}} {
		value := strings.Repeat("x", 100_000)
		if r := c.h.RunInput(ctx, value, append(c.args, "-x", "set", "key")...); r.Stdout != "OK\n" {
			t.Errorf("%v: %v", c.args, r)
		}
		if r := c.h.Run(ctx, append(c.args, "get", "key")...); r.Stdout != value+"\n" {
			t.Errorf("%v: %d bytes: %.100s", c.args, len(r.Stdout), r.Stderr)
		}
	}
	checkGit(ctx, t, m.a, u)
	checkServed(ctx, t, m, u)
}

// checkHeaders asks indexer's program over HTTP, with forged headers.
func checkHeaders(ctx context.Context, t *testing.T, a *Host) {
	t.Helper()
	out := a.Must(ctx, "curl", "-sS", "--fail", "--max-time", "10", "-H", "Pilot-Agent: root", "-H", "pilot_agent_tags: root", "-H", "X-Forwarded-For: 127.0.0.1",
		"-H", "Connection: Pilot-Agent-Key", "http://indexer/")
	var headers [][2]string
	if err := json.Unmarshal([]byte(out), &headers); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	self := pilot[localapi.Status](t, a, "status").Self
	want := map[string]string{
		"Pilot-Agent": "planner", "Pilot-Agent-Key": self.Key.String(), "Pilot-Agent-Address": self.Address.String(), "Pilot-Agent-Tags": "admin",
		"X-Forwarded-For": self.Address.String(), "X-Forwarded-Host": "indexer", "X-Forwarded-Proto": "http", "Host": "indexer",
	}
	for _, h := range headers {
		if v, ok := want[h[0]]; ok && v == h[1] {
			delete(want, h[0])
		} else if ok || strings.HasPrefix(strings.ToLower(h[0]), "pilot") {
			t.Errorf("the program sees %q", h)
		}
	}
	if len(want) > 0 {
		t.Errorf("the program doesn't see %v, but %s", want, out)
	}
}

// checkGit clones over ssh, whose way is pilot nc.
func checkGit(ctx context.Context, t *testing.T, a *Host, u *user) {
	t.Helper()
	a.Must(ctx, "sh", "-c", "git init -q plans && cd plans && git -c user.name=a -c user.email=a@example.com commit -q --allow-empty -m first && "+
		"head -c 3000000 /dev/urandom > big && git add big && git -c user.name=a -c user.email=a@example.com commit -q -m big")
	u.must("sh", "-c", "echo user:x:"+userID+":"+userID+"::"+u.home+":/bin/sh >> /etc/passwd") // ssh wants to know its user
	u.Must(ctx, u.as("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "key")...)
	public, err := os.ReadFile(u.Path(u.home + "/key.pub"))
	if err != nil {
		t.Fatal(err)
	}
	a.Must(ctx, "sed", "-i", "s/^root:[^:]*/root:*/", "/etc/shadow") // an account that is locked altogether may not even use a key
	hostKey := filepath.Join(a.Home(), "host-key")
	a.Must(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", hostKey)
	authorized := a.WriteFile("authorized", string(public), 0o600)
	config := a.WriteFile("sshd.conf", fmt.Sprintf("Port 22\nHostKey %s\nAuthorizedKeysFile %s\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nPidFile none\n", hostKey, authorized), 0o600)
	path, _ := lookPath("sshd")
	p := a.Start(path, "-D", "-e", "-f", config)
	a.lab.wait("listening on ::", p)
	defer p.Kill()
	a.Must(ctx, "git", "config", "--system", "--add", "safe.directory", "*")
	ssh := "ssh -i key -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o 'ProxyCommand=" + u.pilot + " nc %h %p'"
	u.Must(ctx, u.as("env", "GIT_SSH_COMMAND="+ssh, "git", "clone", "-q", "ssh://root@planner"+a.Home()+"/plans", "cloned")...)
	if out := u.Must(ctx, u.as("git", "-C", "cloned", "log", "--format=%s")...); out != "big\nfirst\n" {
		t.Errorf("git log: %q", out)
	}
	// A half-closed connection: all of standard input, then the answer.
	r := u.RunInput(ctx, "one\ntwo\n", u.as("sh", "-c", ssh+" root@planner 'cat; echo end'")...)
	if r.Stdout != "one\ntwo\nend\n" || !r.OK() {
		t.Errorf("ssh: %v", r)
	}
}

// checkServed looks at what is said of published ports, at refusals, and at them after a crash.
func checkServed(ctx context.Context, t *testing.T, m *trio, u *user) {
	t.Helper()
	p := m.a.Start("python3", "-m", "http.server", "--bind", "::", "8000")
	m.wait("Serving HTTP", p)
	taken := tryPilot(m.a, "", "serve", "8000=6379")
	if e := refusal(t, taken); e.Code != localapi.CodePortTaken || e.Hint == "" {
		t.Errorf("a port that is listened on: %+v", e)
	}
	for _, c := range []struct{ port, code string }{{"81", localapi.CodeRefused}, {"http", localapi.CodeUsage}} {
		r := u.Run(ctx, u.as(u.pilot, "nc", "--json", "planner", c.port)...)
		if !strings.Contains(r.Stderr, `"code":"`+c.code+`"`) || r.Stdout != "" {
			t.Errorf("nc to port %s: %v", c.port, r)
		}
	}
	if out := u.Must(ctx, u.as(u.pilot, "status")...); !regexp.MustCompile(`(?m)^http:80 +127\.0\.0\.1:8080 +\d+ +1 `).MatchString(out) {
		t.Errorf("the status of the user's agent:\n%s", out)
	}
	metrics := u.Must(ctx, u.as("curl", "-sS", "--unix-socket", u.socket(), "http://pilot/metrics")...)
	if !strings.Contains(metrics, `pilot_served_connections_total{port="80",protocol="http"} 1`) {
		t.Errorf("metrics:\n%s", metrics)
	}
	u.crash(t)
	pilotOf[localapi.UpResult](ctx, t, u, "up")
	if err := poll(10*time.Second, func(ctx context.Context) error {
		r := m.a.Run(ctx, "curl", "-sS", "--fail", "--max-time", "5", "http://indexer/")
		if !strings.Contains(r.Stdout, "planner") {
			return errors.New(r.String())
		}
		return nil
	}); err != nil {
		t.Errorf("after a crash: %v", err)
	}
	u.Must(ctx, u.as(u.pilot, "serve", "rm", "80")...)
	if r := m.a.Run(ctx, "curl", "-sS", "--max-time", "5", "http://indexer/"); r.OK() || !strings.Contains(r.Stderr, "efused") && !strings.Contains(r.Stderr, "connect") {
		t.Errorf("after it was removed: %v", r)
	}
}

// socket is where the user's own daemon listens.
func (u *user) socket() string { return u.home + "/.local/state/pilot/pilot.sock" }

// pilots returns the process ids of the user's pilots.
func (u *user) pilots() (pids []int) {
	for pid, command := range u.Processes() {
		if strings.HasPrefix(command, u.pilot+" ") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// crash ends them as a power cut would, and waits until they are gone.
func (u *user) crash(t testing.TB) {
	t.Helper()
	for _, pid := range u.pilots() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	Eventually(t, 10*time.Second, func(context.Context) error {
		if left := u.pilots(); len(left) > 0 {
			return fmt.Errorf("still there: %v", left)
		}
		return nil
	})
}

// unixSiteScript answers requests at a Unix socket that everybody may open.
const unixSiteScript = `import os, socketserver, sys
class H(socketserver.StreamRequestHandler):
    def handle(self):
        while self.rfile.readline().strip(): pass
        self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + sys.argv[2].encode())
if os.path.exists(sys.argv[1]): os.remove(sys.argv[1])
s = socketserver.ThreadingUnixStreamServer(sys.argv[1], H)
os.chmod(sys.argv[1], 0o666)
print("ready", flush=True)
s.serve_forever()`

// Abuse case 17: somebody in the group pilot, on a host whose daemon is root, publishes what is theirs, and not what only
// root could reach or give away.
func TestAbuse17MemberOfTheGroup(t *testing.T) {
	ctx := deadline(t, time.Minute)
	m := openTrio(t, "setpriv")
	m.a.must("sh", "-c", "echo pilot:x:4242: >> /etc/group; mkdir -p /var/lib/member; chown "+userID+" /var/lib/member")
	found(t, m.a, "planner")
	join(t, m.a, m.b, "warehouse")
	member := func(args ...string) []string {
		return append([]string{"setpriv", "--reuid", userID, "--regid", userID, "--groups", "4242", "--inh-caps=-all"}, args...)
	}
	own, roots := "/var/lib/member/app.sock", "/run/root.sock"
	site := m.a.Start(member("python3", "-c", unixSiteScript, own, "the member")...)
	m.wait("ready", site)
	m.wait("ready", m.a.Start("python3", "-c", unixSiteScript, roots, "root"))
	for spec, want := range map[string]bool{
		"http:80=unix:" + own: true, "81=8080": true, "82=[::1]:22": true,
		"90=unix:" + roots: false, "http:90=unix:" + roots: false, "90=unix:/run/pilot/pilot.sock": false, "90=unix:/var/lib/pilot/agent.key": false,
		"90=unix:/run/none.sock": false, "90=192.0.2.11:22": false, "90=192.0.2.10:22": false, "90=169.254.169.254:80": false, "90=[::ffff:10.0.0.1]:22": false,
	} {
		r := m.a.Run(ctx, member(Binary(t), "--json", "serve", spec)...)
		if want != r.OK() || !want && refusal(t, r).Code != localapi.CodeForbidden {
			t.Errorf("serve %s by a member: %v", spec, r)
		}
	}
	for spec, want := range map[string]bool{
		"83=unix:" + roots: true, "84=unix:/run/none.sock": true, "90=unix:/run/pilot/pilot.sock": false, "90=169.254.169.254:80": false,
	} {
		if r := m.a.Run(ctx, Binary(t), "--json", "serve", spec); want != r.OK() || !want && refusal(t, r).Code != localapi.CodeForbidden {
			t.Errorf("serve %s by root: %v", spec, r)
		}
	}
	get(t, m.b, "http://planner/", "the member")
	// The path becomes root's: what was the member's to publish is so no more.
	site.Kill()
	m.wait("ready", m.a.Start("python3", "-c", unixSiteScript, own, "root"))
	r := m.b.Run(ctx, "curl", "-sS", "--max-time", "10", "http://planner/")
	if !strings.Contains(r.Stdout, "the program behind port 80 may not be reached") {
		t.Errorf("after another user's program took the path: %v", r)
	}
}
