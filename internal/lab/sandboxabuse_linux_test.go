// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// hostScript is what a host has that a sandbox must not get at: services on its loopback and on all of its addresses, and on
// sockets in the file system and without a name.
const hostScript = `
import socket, threading, sys
def serve(s):
    s.listen()
    while True:
        c, _ = s.accept()
        c.sendall(b"the host\n")
        c.close()
def tcp(address):
    s = socket.socket(socket.AF_INET6)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((address, 9090))
    return s
def unix(path):
    s = socket.socket(socket.AF_UNIX)
    s.bind(path)
    return s
import os
os.umask(0)
os.makedirs("/run/service", exist_ok=True)
for s in (tcp("::"), unix("/run/service/socket"), unix(sys.argv[1] + "/socket"), unix("\0service")):
    threading.Thread(target=serve, args=(s,)).start()
print("serving", flush=True)
`

// escapeScript tries everything that comes to mind, and prints as JSON what it reached.
const escapeScript = `
import ctypes, errno, json, os, socket, struct, subprocess, sys
home, ours, peer = sys.argv[1:4]
reached = []
def attempt(name, f):
    try:
        if f() is not False:
            reached.append(name)
    except Exception as e:
        pass
attempt("descriptors", lambda: len(os.listdir("/proc/self/fd")) > 4)
def talk(family, address):
    def f():
        s = socket.socket(family, socket.SOCK_STREAM)
        s.settimeout(3)
        s.connect(address)
        s.recv(100)
    return f
for a in ("5.5.5.11", "127.0.0.1", "192.0.2.11", "0.0.0.0", "10.0.2.2", "169.254.169.254"):
    attempt("tcp " + a, talk(socket.AF_INET, (a, 9090)))
for a in ("2600:5::11", "::1", "::", "::ffff:5.5.5.11", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "fe80::1", "fd00:ec2::254"):
    attempt("tcp " + a, talk(socket.AF_INET6, (a, 9090)))
for path in ("/run/service/socket", home + "/socket", "\0service", "/run/pilot/pilot.sock", home + "/.local/state/pilot/run/inmate/pilot.sock"):
    attempt("unix " + path, talk(socket.AF_UNIX, path))
def file(path):
    return lambda: open(path).read()
for path in ("/.local/state/pilot/run/inmate/agent.key", "/.local/state/pilot/run/inmate/node.json"):
    attempt("file " + path, file(home + path))
def status():
    text = dict(l.split(":\t", 1) for l in open("/proc/self/status").read().splitlines() if ":\t" in l)
    return any(int(text[k], 16) for k in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")) or text["NoNewPrivs"] != "1"
attempt("privileges", lambda: status() or False)
def command(*args):
    return lambda: subprocess.run(args, capture_output=True, timeout=10).returncode == 0
attempt("another address", command("ip", "addr", "add", "fd00::1/128", "dev", "pilot0"))
attempt("another route", command("ip", "route", "add", "10.9.9.9", "dev", "lo"))
attempt("interface down", command("ip", "link", "set", "pilot0", "down"))
attempt("raw socket", lambda: socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58))
attempt("packet socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
attempt("socket to the machine below", lambda: socket.socket(40, socket.SOCK_STREAM))
attempt("keys on the terminal", lambda: __import__("fcntl").ioctl(os.openpty()[1], 0x5412, b"x"))
attempt("io_uring", lambda: ctypes.CDLL(None).syscall(425, 8, ctypes.create_string_buffer(256)) >= 0)
attempt("mount", command("mount", "-t", "tmpfs", "none", "/mnt"))
attempt("unmount", command("umount", "/run"))
attempt("unmount in a namespace of its own", command("unshare", "-Urm", "umount", "/run"))
attempt("address in a namespace of its own", command("unshare", "-Ur", "ip", "addr", "add", "fd00::1/128", "dev", "pilot0"))
attempt("first process's files", lambda: os.listdir("/proc/1/fd"))
attempt("first process's network", lambda: open("/proc/1/ns/net"))
attempt("other processes", lambda: len([p for p in os.listdir("/proc") if p.isdigit()]) > 4)
attempt("interfaces", lambda: sorted(n for _, n in socket.if_nameindex()) != ["lo", "pilot0"])
attempt("invite", lambda: "PILOT_INVITE" in os.environ)
def foreign():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(1)
    s.setsockopt(socket.IPPROTO_IP, 15, 1) # IP_FREEBIND
    s.bind(("5.5.5.80", 0))
    s.connect(("5.5.5.80", 80))
    s.send(b"x")
    s.recv(10)
attempt("foreign source", foreign)
attempt("resolver", command("dig", "+time=1", "+tries=1", "@5.5.5.80", "example.test"))
attempt("agent without consent", talk(socket.AF_INET6, (ours, 9090)))
attempt("allowed", lambda: socket.create_connection(("5.5.5.80", 8080), 3))
attempt("peer", lambda: socket.create_connection((peer, 80), 3))
print(json.dumps(reached))
`

// TestAbuse16Sandbox: a program that tries gets at nothing but what the rules say, with "all" too.
func TestAbuse16Sandbox(t *testing.T) {
	ctx := deadline(t, time.Minute)
	m, _ := openWorld(t)
	Programs(t, "unshare", "dig")
	planner := found(t, m.a, "planner")
	serve(m.a)
	stranger := joinBy(t, m.b, "host-b", pilot[localapi.InviteResult](t, m.a, "invite", "--no-trust").Invite)
	b := m.b.user()
	m.wait("serving", m.b.Start("python3", "-c", hostScript, b.home))
	invite := b.invite(t, m.a)
	for _, c := range []struct {
		rules string
		want  []string
	}{
		{"all", []string{"resolver", "allowed", "peer"}},
		{"5.5.5.80:8080", []string{"allowed", "peer"}},
		{"none", []string{"peer"}},
	} {
		out := m.b.Must(ctx, b.as("PILOT_INVITE=secret", b.pilot, "run", "--name", "inmate", "--invite-file", invite, "--egress", c.rules, "--quiet", "--",
			"python3", "-c", escapeScript, b.home, stranger.Address.String(), planner.Address.String())...)
		var reached []string
		if err := json.Unmarshal([]byte(out), &reached); err != nil {
			t.Fatalf("%v in %s", err, out)
		}
		if fmt.Sprint(reached) != fmt.Sprint(c.want) {
			t.Errorf("--egress %s reached %q", c.rules, reached)
		}
	}
	r := m.b.Run(ctx, b.run("inmate", "--egress", "5.5.5.80:8080", "--", "curl", "-sS", "--max-time", "3", "http://5.5.5.80/")...)
	if !strings.Contains(r.Stderr, "pilot: refused 1 times by --egress: tcp 5.5.5.80:80") {
		t.Errorf("the last line: %v", r)
	}
}

// headerScript sends what has other headers in front of the transport's, by ordinary sockets, to a port that answers.
const headerScript = `
import json, socket
reached = []
def attempt(name, f):
    try:
        f()
        reached.append(name)
    except Exception:
        pass
# What libraries can't do: headers in front of the transport's, by an ordinary socket.
def options(kind, value):
    def f():
        s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        s.settimeout(1)
        s.setsockopt(socket.IPPROTO_IPV6, kind, value)
        s.connect(("2600:5::80", 7))
        s.send(b"through")
        s.recv(100)
    return f
attempt("datagram", options(67, 1)) # IPV6_TCLASS: a plain one
attempt("destination options", options(59, bytes([0, 0, 1, 4, 0, 0, 0, 0])))
attempt("hop-by-hop options", options(54, bytes([0, 0, 1, 4, 0, 0, 0, 0])))
def fragments():
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    s.settimeout(1)
    s.setsockopt(socket.IPPROTO_IPV6, 24, 1280) # IPV6_MTU
    s.connect(("2600:5::80", 7))
    s.send(b"x" * 4000)
    s.recv(5000)
attempt("fragments", fragments)
def source_route():
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    s.settimeout(1)
    s.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, bytes([131, 7, 4]) + socket.inet_aton("5.5.5.80") + b"\0")
    s.connect(("5.5.5.80", 443))
attempt("source route", source_route)
print(json.dumps(reached))
`

// TestAbuse15Sandbox: no header is a way around a rule about ports, and fragments are judged as the datagram that they make.
func TestAbuse15Sandbox(t *testing.T) {
	ctx := deadline(t, time.Minute)
	m, _ := openWorld(t)
	found(t, m.a, "planner")
	b := m.b.user()
	invite := b.invite(t, m.a)
	for rules, want := range map[string][]string{
		"[2600:5::80]:8,5.5.5.80:444": {},
		"[2600:5::80]:7,5.5.5.80:443": {"datagram", "fragments"},
	} {
		out := m.b.Must(ctx, b.run("inmate", "--invite-file", invite, "--egress", rules, "--quiet", "--", "python3", "-c", headerScript)...)
		var reached []string
		if err := json.Unmarshal([]byte(out), &reached); err != nil {
			t.Fatalf("%v in %s", err, out)
		}
		if fmt.Sprint(reached) != fmt.Sprint(want) {
			t.Errorf("--egress %s reached %q", rules, reached)
		}
	}
}
