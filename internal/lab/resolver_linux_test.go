// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// officeScript is an office's DNS: each server knows www.example.com and intranet.office.example, under an address that
// ends as the server's own, so that an answer tells who was asked. Other names don't exist.
const officeScript = `
import selectors, socket
def answer(q, last):
    end, labels = 12, []
    while q[end]:
        labels.append(q[end+1:end+1+q[end]])
        end += q[end] + 1
    name = b".".join(labels).lower()
    known = name in (b"www.example.com", b"intranet.office.example")
    head, question, kind = q[:2] + b"\x81", q[12:end+5], q[end+1:end+3]
    if known and kind == b"\x00\x01":
        return head + b"\x80\x00\x01\x00\x01\x00\x00\x00\x00" + question + b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x01\x00\x04" + bytes([203, 0, 113, last])
    soa = b"\x00\x00\x06\x00\x01\x00\x00\x00\x01\x00\x16\x00\x00" + b"\x00\x00\x00\x01" * 5
    return head + (b"\x80" if known else b"\x83") + b"\x00\x01\x00\x00\x00\x01\x00\x00" + question + soa
s = selectors.DefaultSelector()
for address, last in ("192.0.2.53", 53), ("192.0.2.54", 54), ("192.0.2.55", 55), ("198.51.100.55", 55):
    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    u.bind((address, 53))
    s.register(u, selectors.EVENT_READ, last)
print("answering")
while True:
    for key, _ in s.select():
        q, who = key.fileobj.recvfrom(4096)
        try:
            key.fileobj.sendto(answer(q, key.data), who)
        except (IndexError, OSError):
            pass
`

// lookupProgram asks the C library that it is linked with for a name's addresses.
const lookupProgram = `
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
int main(int argc, char **argv) {
	struct addrinfo hints, *a;
	char text[200];
	memset(&hints, 0, sizeof hints);
	hints.ai_socktype = SOCK_STREAM;
	int e = getaddrinfo(argv[1], 0, &hints, &a);
	if (e) { fprintf(stderr, "%s\n", gai_strerror(e)); return 1; }
	for (; a; a = a->ai_next)
		if (!getnameinfo(a->ai_addr, a->ai_addrlen, text, sizeof text, 0, 0, NI_NUMERICHOST)) puts(text);
	return 0;
}
`

// office is the lab of these tests: an office with DNS servers and an agent, planner, that has something to show.
type office struct {
	*Lab
	t       *testing.T
	lan     *Bridge
	corp    *Bridge // another network, which a VPN leads to
	dns     *Host
	planner *Host
	self    localapi.UpResult
	musl    string // a static program of musl's
}

func openOffice(t *testing.T) *office {
	t.Helper()
	o := &office{Lab: open(t), t: t}
	Programs(t, "curl", "python3", "musl-gcc")
	o.lan = o.Bridge("lan")
	o.dns = o.Host("dns")
	k := o.dns.Connect(o.lan, "192.0.2.53/24")
	k.Add("192.0.2.54/24")
	k.Add("192.0.2.55/24")
	o.corp = o.Bridge("corp")
	o.dns.Connect(o.corp, "198.51.100.55/24")
	o.wait("answering", o.dns.Start("python3", "-c", officeScript))
	source := o.dns.WriteFile("lookup.c", lookupProgram, 0o644)
	o.musl = filepath.Join(o.Dir(), "lookup")
	if out, err := exec.Command("musl-gcc", "-static", "-O1", "-o", o.musl, source).CombinedOutput(); err != nil {
		t.Fatalf("musl-gcc: %v\n%s", err, out)
	}
	o.planner = o.Host("planner")
	o.planner.Connect(o.lan, "192.0.2.10/24")
	o.self = found(t, o.planner, "planner")
	o.planner.WriteFile("index.html", "the plan", 0o644)
	serve(o.planner)
	return o
}

// knows is nil if programs of the host resolve the agent planner if they should, and an ordinary name by the server
// whose address ends so.
func (o *office) knows(ctx context.Context, h *Host, planner bool, server int) error {
	agent := ""
	if planner {
		agent = o.self.Address.String()
	}
	var mu sync.Mutex
	var all sync.WaitGroup
	var problems []string
	for name, want := range map[string]string{
		"planner": agent, "planner.pilot.internal": agent, "www.example.com": fmt.Sprintf("203.0.113.%d", server),
	} {
		for library, program := range map[string][]string{"glibc": {"getent", "ahosts"}, "musl": {filepath.Join(h.Home(), "lookup")}} {
			if want == "" && library == "musl" {
				continue // it takes its time to give up a name that nobody knows
			}
			all.Go(func() {
				// Not as root, who may read any file.
				r := h.Run(ctx, slices.Concat([]string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"}, program, []string{name})...)
				if got, _, _ := strings.Cut(strings.Fields(r.Stdout + " -")[0], "%"); got != cmp.Or(want, "-") {
					mu.Lock()
					problems = append(problems, fmt.Sprintf("%s: %s is %s instead of %s", library, name, got, cmp.Or(want, "-")))
					mu.Unlock()
				}
			})
		}
	}
	all.Wait()
	if problems == nil && planner {
		if r := h.Run(ctx, "curl", "-sS", "--fail", "--max-time", "5", "http://planner/"); r.Stdout != "the plan" {
			problems = append(problems, r.String())
		}
	}
	if problems == nil {
		return nil
	}
	slices.Sort(problems)
	return errors.New(strings.Join(problems, "; "))
}

// setting is one way in which a system resolves names, and what may happen to it.
type setting struct {
	name string
	mode string // as pilot status has it
	// prepare makes it, with the server whose address ends so; and again, when another one is to be used, as DHCP says.
	prepare func(h *Host, server int) error
	restart func(h *Host) error                    // the resolver, or what manages it; nil: there is none
	late    func(h *Host) error                    // it starts after the daemon; nil: left out
	vpn     func(h *Host, up bool) error           // another network's client comes and goes; nil: left out
	service bool                                   // the daemon is a system service, which comes back by itself
	local   bool                                   // the resolver is on the host itself, so that DHCP changes nothing
	unfit   string                                 // why agents' names can't resolve; others must
	state   func(ctx context.Context, h *Host) any // what has to be as it was, besides /etc/resolv.conf
}

// trial is one setting on one host.
type trial struct {
	*office
	setting
	t       *testing.T // of this one
	h       *Host
	machine *Machine // nil: the host is none
	invite  string
	joined  bool
	cells   map[string]error
}

// events are the columns of the table.
func events() []string {
	return []string{"up", "down", "DHCP", "restart", "late", "VPN on", "VPN off", "kill -9", "then up", "then down", "reboot"}
}

// patience is how long a state may take to come: the settings are looked at each three seconds.
const patience = 15 * time.Second

func (x *trial) cell(event string, check func(ctx context.Context) error) {
	begin := time.Now()
	x.cells[event] = poll(patience, check)
	x.t.Logf("%s: %v after %.1f s", event, x.cells[event], time.Since(begin).Seconds())
}

func (x *trial) up() error {
	args := []string{"up"}
	if !x.joined {
		args = []string{"up", "--name", x.h.Name(), "-"}
	}
	r := tryPilot(x.h, x.invite, args...)
	if !r.OK() {
		return errors.New(r.String())
	}
	x.joined = true
	var s localapi.Status
	if r = tryPilot(x.h, "", "status"); json.Unmarshal([]byte(r.Stdout), &s) != nil || s.Self == nil || s.Self.DNS != x.mode {
		return fmt.Errorf("names are not by %s: %v", x.mode, r)
	}
	return nil
}

func (x *trial) down() error {
	if r := tryPilot(x.h, "", "down"); !r.OK() {
		return errors.New(r.String())
	}
	return nil
}

// facts are what has to be the same before and after.
func (x *trial) facts(ctx context.Context) string {
	all := x.h.files("/etc/resolv.conf", "/run/resolvconf")
	all = slices.DeleteFunc(all, func(line string) bool {
		return strings.HasSuffix(line, " /run/resolvconf/exclusive") // a folder of openresolv's, which it leaves empty
	})
	if info, err := os.Lstat(x.h.Path("/etc/resolv.conf")); err == nil {
		owner := info.Sys().(*syscall.Stat_t)
		all = append(all, fmt.Sprintf("%d:%d", owner.Uid, owner.Gid))
		if x.mode != "resolvconf" { // which writes the same again
			all = append(all, info.ModTime().String())
		}
	}
	if x.state != nil {
		all = append(all, fmt.Sprint(x.state(ctx, x.h)))
	}
	return strings.Join(all, "\n")
}

// asBefore is nil if nothing is left of us.
func (x *trial) asBefore(ctx context.Context, before string, server int) error {
	if now := x.facts(ctx); now != before {
		return fmt.Errorf("it was\n%s\nand is\n%s", before, now)
	}
	return x.knows(ctx, x.h, false, server)
}

// must ends the trial with an error of the test's own.
func (x *trial) must(err error) {
	x.t.Helper()
	if err != nil {
		x.t.Fatal(err)
	}
}

// settle makes the setting as it is without us, and says what that is.
func (x *trial) settle(ctx context.Context) (facts string) {
	x.must(x.prepare(x.h, 53))
	if err := poll(patience, func(ctx context.Context) error {
		former := facts
		if facts = x.facts(ctx); facts != former {
			return errors.New("it changes")
		}
		return x.knows(ctx, x.h, false, 53)
	}); err != nil {
		x.t.Errorf("before: %v", err)
		x.cells["up"] = err
	}
	return facts
}

// run takes the host through all events.
func (x *trial) run() {
	ctx := x.t.Context()
	fits := x.unfit == ""
	x.cells = map[string]error{}
	before := x.settle(ctx)
	both := func(server int) func(context.Context) error {
		return func(ctx context.Context) error { return x.knows(ctx, x.h, fits, server) }
	}
	undone := func(ctx context.Context) error { return x.asBefore(ctx, before, 53) }
	start := func(event string) bool {
		err := x.up()
		if err == nil {
			err = poll(patience, both(53))
		}
		x.cells[event] = errors.Join(x.cells[event], err)
		x.t.Logf("%s: %v", event, err)
		return err == nil
	}
	stop := func(event string, check func(context.Context) error) {
		if err := x.down(); err != nil {
			x.cells[event] = err
			return
		}
		if x.cell(event, check); x.cells[event] != nil {
			before = x.settle(ctx) // for what comes next
		}
	}
	if start("up") {
		stop("down", undone)
	}
	if start("up") {
		if !x.local {
			x.must(x.prepare(x.h, 54))
			x.cell("DHCP", both(54))
		}
		x.must(x.prepare(x.h, 53)) // the network is as it was
		if x.cells["DHCP"] == nil {
			x.cell("DHCP", both(53))
		}
		if x.restart != nil {
			x.must(x.restart(x.h))
			x.cell("restart", both(53))
		}
		if x.late != nil {
			x.must(x.late(x.h))
			x.cell("late", both(53))
		}
		if x.vpn != nil {
			x.must(x.vpn(x.h, true))
			x.cell("VPN on", both(55))
			x.must(x.vpn(x.h, false))
			x.cell("VPN off", both(53))
		}
		if err := x.down(); err != nil {
			x.t.Errorf("%s: down: %v", x.name, err)
		}
		before = x.settle(ctx)
	}
	x.killed(undone, both(53))
	if x.machine != nil {
		if err := x.up(); err != nil {
			x.t.Error(err)
		}
		x.must(x.machine.reboot())
		if x.mode == "resolvconf" {
			x.must(x.prepare(x.h, 53)) // a DHCP client would have
		}
		x.cell("reboot", both(53))
	}
}

// killed ends the daemon with kill -9: a service comes back; otherwise names resolve again without any of ours.
func (x *trial) killed(undone, both func(context.Context) error) {
	if err := x.up(); err != nil {
		return // said already
	}
	kill := func() {
		for pid, command := range x.h.Processes() {
			if strings.Contains(command, "pilot daemon") {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
	kill()
	if x.service {
		x.cell("kill -9", both)
	} else {
		x.cell("kill -9", undone)
	}
	if err := x.up(); err != nil {
		x.cells["then up"] = err
	} else {
		x.cell("then up", both)
	}
	kill()
	if err := x.down(); err != nil {
		x.cells["then down"] = err
		return
	}
	x.cell("then down", undone)
}

// try prepares a setting on a host that is connected already.
func (o *office) try(h *Host, s setting) *trial {
	program, err := os.ReadFile(o.musl)
	if err != nil {
		o.t.Fatal(err)
	}
	h.WriteFile("lookup", string(program), 0o755)
	return &trial{office: o, setting: s, h: h, invite: pilot[localapi.InviteResult](o.t, o.planner, "invite").Invite}
}

// runAll runs them side by side: most of the time each waits. begin comes before each, end after it.
func runAll(t *testing.T, trials []*trial, begin, end func(*trial)) {
	t.Helper()
	t.Run("settings", func(t *testing.T) {
		for _, x := range trials {
			t.Run(x.name, func(t *testing.T) {
				t.Parallel()
				x.t = t
				begin(x)
				x.run()
				end(x)
			})
		}
	})
	tell(t, trials)
}

// tell reports the table, and what in it isn't as it should be.
func tell(t *testing.T, trials []*trial) {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "\n| | %s |\n|---|%s\n", strings.Join(events(), " | "), strings.Repeat("---|", len(events())))
	for _, x := range trials {
		fmt.Fprintf(&b, "| %s |", x.name)
		for _, event := range events() {
			err, done := x.cells[event]
			word := "ok"
			switch {
			case !done:
				word = "-"
			case err != nil:
				word = "**no**"
				t.Errorf("%s: %s: %v", x.name, event, err)
			}
			fmt.Fprintf(&b, " %s |", word)
		}
		b.WriteString("\n")
	}
	t.Log(b.String())
}

// resolvConf is what an office's DHCP client would write.
func resolvConf(server int) string {
	return fmt.Sprintf("# by hand\nnameserver 192.0.2.%d\nsearch office.example\noptions timeout:2\n", server)
}

// write replaces a host's file as it is: in place.
func write(h *Host, path, content string) error {
	return os.WriteFile(h.Path(path), []byte(content), 0o644)
}

// shell runs a script on a host.
func shell(h *Host, script string, args ...any) error {
	ctx, cancel := context.WithTimeout(context.Background(), setupTimeout)
	defer cancel()
	if r := h.Run(ctx, "sh", "-ec", fmt.Sprintf(script, args...)); !r.OK() {
		return errors.New(r.String())
	}
	return nil
}

// Plain files, as containers and small systems have them.
func TestResolverFiles(t *testing.T) {
	o := openOffice(t)
	file := setting{name: "file", mode: "file", prepare: func(h *Host, server int) error {
		return write(h, "/etc/resolv.conf", resolvConf(server))
	}}
	file.vpn = func(h *Host, up bool) error {
		if up {
			return shell(h, "cp -a /etc/resolv.conf /run/vpn.saved; echo nameserver 192.0.2.55 >/etc/resolv.conf")
		}
		return shell(h, "mv /run/vpn.saved /etc/resolv.conf")
	}
	mounted := file
	mounted.name, mounted.vpn = "file, mounted", nil
	mounted.prepare = func(h *Host, server int) error {
		if err := write(h, "/etc/resolv.conf", resolvConf(server)); err != nil {
			return err
		}
		return shell(h, "grep -q ' /etc/resolv.conf ' /proc/mounts || { cp /etc/resolv.conf /run/r; mount --bind /run/r /etc/resolv.conf; }")
	}
	immutable := setting{name: "file, immutable", mode: "none", unfit: "nobody may change it"}
	immutable.prepare = func(h *Host, server int) error {
		return shell(h, "chattr -f -i /etc/resolv.conf; printf '%%s' '%s' >/etc/resolv.conf; chattr +i /etc/resolv.conf", resolvConf(server))
	}
	empty := setting{name: "file, empty", mode: "file", local: true, prepare: func(h *Host, _ int) error {
		return write(h, "/etc/resolv.conf", "")
	}}
	missing := setting{name: "file, missing", mode: "file", local: true, prepare: func(h *Host, _ int) error {
		return shell(h, "rm -f /etc/resolv.conf")
	}}
	dnsmasq := setting{name: "dnsmasq", mode: "file", local: true, prepare: func(h *Host, _ int) error {
		return write(h, "/etc/resolv.conf", "nameserver 127.0.0.1\n")
	}}
	var trials []*trial
	for i, s := range []setting{file, mounted, immutable, empty, missing, dnsmasq} {
		h := o.Host(fmt.Sprintf("h%d", i))
		h.Connect(o.lan, fmt.Sprintf("192.0.2.%d/24", 20+i))
		if s.local {
			o.dnsmasq(h)
		}
		trials = append(trials, o.try(h, s))
	}
	runAll(t, trials, func(*trial) {}, func(x *trial) {
		if x.mode == "none" {
			x.softens()
		}
	})
}

// dnsmasq runs a resolver on the host itself, which asks the office's first server.
func (o *office) dnsmasq(h *Host) {
	o.t.Helper()
	Programs(o.t, "dnsmasq")
	h.WriteFile("dnsmasq.conf", "no-resolv\nserver=192.0.2.53\nlisten-address=127.0.0.1\nbind-interfaces\nuser=root\n", 0o644)
	o.wait("using nameserver", h.Start("dnsmasq", "--keep-in-foreground", "--log-facility=-", "--pid-file=",
		"--conf-file="+filepath.Join(h.Home(), "dnsmasq.conf")))
}

// softens shows that names resolve as soon as an immutable file is one no more, without another up.
func (x *trial) softens() {
	x.t.Helper()
	if err := x.up(); err != nil {
		x.t.Error(err)
	}
	x.h.Must(x.t.Context(), "chattr", "-i", "/etc/resolv.conf")
	if err := poll(patience, func(ctx context.Context) error { return x.knows(ctx, x.h, true, 53) }); err != nil {
		x.t.Errorf("%s: no more, and %v", x.name, err)
	}
	if err := x.down(); err != nil {
		x.t.Error(err)
	}
}
