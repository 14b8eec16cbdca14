// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// TB is what a lab wants of its test. A *[testing.T] is one, and so is a program that implements it.
//
// Fatalf and Skipf don't return.
type TB interface {
	Helper()
	Name() string
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
	Failed() bool
	Cleanup(func())
}

// Lab is one network of hosts. Its methods end the test through TB.Fatalf when the machine refuses something. A lab
// belongs to the goroutine of its test; only [Host.Run], [Host.Start] and what they return may be used from others.
type Lab struct {
	tb     TB
	dir    string
	fabric *Host // the namespace that holds the bridges
	hosts  []*Host
	ports  int
}

// setupTimeout bounds each step of building a lab.
const setupTimeout = 20 * time.Second

// dirPrefix begins the name of each lab's folder; the process id of its owner follows.
const dirPrefix = "pilot-lab-"

// New makes an empty lab that is taken down when the test ends. Without root it skips the test, or fails it where
// the environment says CI=true: a CI run that tests nothing must not look like one that passed.
func New(tb TB) *Lab {
	tb.Helper()
	RequireRoot(tb)
	Programs(tb, "bash", "ip", "mount", "hostname", "ss")
	sweep()
	dir, err := os.MkdirTemp("", dirPrefix+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		tb.Fatalf("lab: %v", err)
	}
	// Hosts run programs under other users (tcpdump, sshd), which must reach their files.
	if err := os.Chmod(dir, 0o755); err != nil {
		tb.Fatalf("lab: %v", err)
	}
	l := &Lab{tb: tb, dir: dir}
	tb.Cleanup(l.close)
	l.fabric = l.newHost("fabric")
	return l
}

// RequireRoot skips the test, or fails it where CI=true, unless it runs as root.
func RequireRoot(tb TB) {
	tb.Helper()
	if os.Geteuid() == 0 {
		return
	}
	const why = "the lab needs root to make network namespaces: run it with sudo"
	if os.Getenv("CI") == "true" {
		tb.Fatalf("%s", why)
	}
	tb.Skipf("%s", why)
}

// Dir is the lab's folder. It is removed with the lab.
func (l *Lab) Dir() string { return l.dir }

// Hosts returns the hosts in the order in which they were made.
func (l *Lab) Hosts() []*Host { return l.hosts }

// Host makes a host that is not connected to anything yet.
func (l *Lab) Host(name string) *Host {
	l.tb.Helper()
	h := l.newHost(name)
	l.hosts = append(l.hosts, h)
	return h
}

// Router makes a host that forwards IPv4 and IPv6 between the bridges it is connected to. What it does to the
// packets beyond that, say NAT, is up to the nftables rules that the test loads into it with nft.
func (l *Lab) Router(name string) *Host {
	l.tb.Helper()
	h := l.Host(name)
	h.must("sysctl", "-q", "-w", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	return h
}

// Bridge makes an Ethernet switch. The name is at most 15 characters.
func (l *Lab) Bridge(name string) *Bridge {
	l.tb.Helper()
	l.fabric.must("ip", "link", "add", name, "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
	l.fabric.must("ip", "link", "set", name, "up")
	return &Bridge{lab: l, name: name}
}

// close takes the lab down. It is the test's last cleanup, so Failed is final.
func (l *Lab) close() {
	if l.tb.Failed() {
		for _, h := range l.hosts {
			h.report()
		}
	}
	for _, h := range l.hosts {
		h.close()
	}
	if l.fabric != nil {
		l.fabric.close()
	}
	if os.Getenv("PILOT_LAB_KEEP") != "" {
		l.tb.Logf("lab: files kept in %s", l.dir)
		return
	}
	if err := os.RemoveAll(l.dir); err != nil {
		l.tb.Logf("lab: %v", err)
	}
}

// sweep removes the folders of labs whose process is gone.
func sweep() {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), dirPrefix+"*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		id, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), dirPrefix), "-")
		pid, err := strconv.Atoi(id)
		if err != nil || pid <= 0 || !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			continue
		}
		_ = os.RemoveAll(dir)
	}
}

// Eventually calls check about twenty times a second until it returns nil, and ends the test with its last error
// when that takes longer than limit. Real processes offer no event to wait for; this is the one place that polls.
func Eventually(tb TB, limit time.Duration, check func(ctx context.Context) error) {
	tb.Helper()
	if err := poll(limit, check); err != nil {
		tb.Fatalf("still not so after %v: %v", limit, err)
	}
}

func poll(limit time.Duration, check func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	last := errors.New("never checked")
	for ctx.Err() == nil {
		err := check(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	return fmt.Errorf("%w", last)
}
