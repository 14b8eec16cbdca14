// SPDX-License-Identifier: Apache-2.0

//go:build unix

package serve

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/platform"
)

func codeOf(err error) string {
	var e *localapi.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// Abuse case 17: a member of the group pilot publishes what only others could connect to. The daemon connects as its own
// user; so what counts is who listens, and not what the path's permissions say.
func TestAbuse17UnixSocketOfSomebodyElse(t *testing.T) {
	const member = 4711
	socket := filepath.Join(t.TempDir(), "s")
	said := make(chan string, 10)
	program(t, "unix", socket, func(c net.Conn) {
		text, _ := io.ReadAll(c)
		said <- string(text)
	})
	if err := os.Chmod(socket, 0o666); err != nil { // everybody may open it: it knows its callers by their users
		t.Fatal(err)
	}
	r := start(t, Options{})
	p := port(t, "tcp", 80, "unix:"+socket)
	p.Publisher = Publisher{UID: member}
	for name, p := range map[string]Port{
		"somebody else's":        p,
		"none":                   {Protocol: "tcp", Port: 80, Target: Target{Unix: socket + "x"}, Publisher: Publisher{UID: member}},
		"a file":                 {Protocol: "tcp", Port: 80, Target: Target{Unix: "/etc/passwd"}, Publisher: Publisher{UID: member}},
		"for http, just as well": {Protocol: "http", Port: 80, Target: Target{Unix: socket}, Publisher: Publisher{UID: member}},
	} {
		err := r.Admit(t.Context(), p)
		if codeOf(err) != localapi.CodeForbidden || err.Error() != errNotYours(p.Target).Error() {
			t.Errorf("%s: %v", name, err)
		}
	}
	// It holds for each connection: who listens may have changed since.
	r.set(t, p)
	c, err := net.Dial("tcp", r.network.where(80))
	if err == nil {
		_, _ = io.WriteString(c, "secret") // it may be broken off already
		_, err = c.Read(make([]byte, 1))
		c.Close()
	}
	if err == nil || err == io.EOF {
		t.Errorf("the peer meets %v", err)
	}
	for len(said) > 0 {
		if text := <-said; text != "" {
			t.Errorf("the program was told %q", text)
		}
	}
	// Their own, and everybody's for root.
	for name, by := range map[string]Publisher{"the owner": {UID: uint32(os.Geteuid())}, "root": {Full: true}} {
		p.Publisher = by
		if err := r.Admit(t.Context(), p); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Nobody whose user can't be told, and not the daemon's own socket for anybody.
func TestAbuse17UnixSocketThatGivesTheDaemonAway(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	program(t, "unix", socket, echo)
	link := socket + "-link"
	if err := os.Symlink(socket, link); err != nil {
		t.Fatal(err)
	}
	own := start(t, Options{Socket: socket})
	for _, path := range []string{socket, link} {
		if err := own.Admit(t.Context(), port(t, "tcp", 80, "unix:"+path)); codeOf(err) != localapi.CodeForbidden {
			t.Errorf("%s: %v", path, err)
		}
	}
	unknown := start(t, Options{Peer: func(net.Conn) (platform.Caller, error) { return platform.Caller{}, nil }})
	p := port(t, "tcp", 80, "unix:"+socket)
	p.Publisher = Publisher{UID: 0}
	if err := unknown.Admit(t.Context(), p); codeOf(err) != localapi.CodeForbidden {
		t.Errorf("a program of nobody's: %v", err)
	}
}

// Abuse cases 16 and 17: addresses that are not on this host's loopback are root's and the daemon's user's to publish, and
// some are nobody's.
func TestAbuse17Addresses(t *testing.T) {
	r := start(t, Options{})
	for _, c := range []struct {
		target       string
		member, root bool
	}{
		{"127.0.0.1:22", true, true}, {"127.3.2.1:80", true, true}, {"[::1]:80", true, true}, {"[::ffff:127.0.0.1]:80", true, true},
		{"10.0.0.1:80", false, true}, {"192.168.1.1:80", false, true}, {"[fd00::1]:80", false, true}, {"198.41.0.4:53", false, true}, {"[2606:4700::1]:443", false, true},
		{"169.254.169.254:80", false, false}, {"[fd00:ec2::254]:80", false, false}, {"168.63.129.16:80", false, false}, {"100.100.100.200:80", false, false},
		{"[::ffff:169.254.169.254]:80", false, false}, {"[64:ff9b::a9fe:a9fe]:80", false, false}, {"[64:ff9b::7f00:1]:80", false, false},
		{"169.254.1.1:80", false, false}, {"[fe80::1]:80", false, false}, {"0.0.0.0:80", false, false}, {"[::]:80", false, false},
		{"224.0.0.1:80", false, false}, {"255.255.255.255:80", false, false}, {"[2002:7f00:1::]:80", false, false},
		{"[fd5c:1d2:93a0::a]:80", false, false}, {"[fd5c:1d2:93a0::53]:53", false, false}, // in the network
	} {
		for _, by := range []struct {
			Publisher
			want bool
		}{{Publisher{UID: 4711}, c.member}, {Publisher{Full: true}, c.root}} {
			p := port(t, "tcp", 80, c.target)
			p.Publisher = by.Publisher
			if err := r.Admit(t.Context(), p); (err == nil) != by.want || err != nil && codeOf(err) != localapi.CodeForbidden {
				t.Errorf("%s by %+v: %v", c.target, by.Publisher, err)
			}
		}
	}
}
