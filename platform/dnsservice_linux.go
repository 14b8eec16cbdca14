// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// The system service's daemon is not root, and the DNS settings are root's. Between the two is a connection over which
// the daemon says, a line of JSON each way, what the methods of DNS say. The other end is a process of its own that can
// do nothing else, takes no configuration but one of an overlay's, and undoes it when the connection ends.

const (
	dnsServiceSocket = "/run/pilot-dns.sock"
	dnsServiceLimit  = 15 * time.Second // for one answer
	maxDNSLine       = 64 << 10         // bytes of one question or answer
)

// dnsQuestion asks for one method of DNS; with no Method at all, only for the answer's state.
type dnsQuestion struct {
	Method string    `json:"method,omitempty"` // "set", "refresh", "restore"
	Config DNSConfig `json:"config"`           // for "set"
}

// dnsAnswer has what the method returned, and the state after it.
type dnsAnswer struct {
	Error     string           `json:"error,omitempty"`
	Changed   bool             `json:"changed,omitempty"`
	Mode      string           `json:"mode"`
	Upstreams []netip.AddrPort `json:"upstreams,omitempty"`
}

// ServeDNS lets whoever is at the other end of rw change this host's DNS settings, and undoes that when rw ends. The
// error is that of the connection, of the lock on the state folder, or of the undoing.
func ServeDNS(rw io.ReadWriter, o Options) (err error) {
	if err := SecureDir(o.StateDir, 0o700); err != nil {
		return err
	}
	unlock, err := LockFile(filepath.Join(o.StateDir, "lock"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	dns, openErr := OpenDNS(o)
	defer func() {
		if dns != nil {
			err = errors.Join(err, dns.Restore())
		}
	}()
	return converse(rw, dns, openErr)
}

// converse answers questions until there are no more. Without a DNS it answers each with openErr.
func converse(rw io.ReadWriter, dns DNS, openErr error) error {
	questions := json.NewDecoder(&boundedLines{r: rw})
	for {
		var q dnsQuestion
		if err := questions.Decode(&q); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("DNS service: %w", err)
		}
		a := dnsAnswer{Mode: ModeNone}
		if openErr != nil {
			a.Error = openErr.Error()
		} else {
			a = answerDNS(dns, q)
		}
		line, err := json.Marshal(a)
		if err == nil {
			_, err = rw.Write(append(line, '\n'))
		}
		if err != nil {
			return fmt.Errorf("DNS service: %w", err)
		}
	}
}

func answerDNS(dns DNS, q dnsQuestion) dnsAnswer {
	var a dnsAnswer
	var err error
	switch q.Method {
	case "":
	case "set":
		if err = q.Config.ofOverlay(); err == nil {
			err = dns.Set(q.Config)
		}
	case "refresh":
		a.Changed, err = dns.Refresh()
	case "restore":
		err = dns.Restore()
	default:
		err = fmt.Errorf("%w: method %q", ErrDNSConfig, q.Method)
	}
	if err != nil {
		a.Error = err.Error()
	}
	a.Mode, a.Upstreams = dns.Mode(), dns.Upstreams()
	return a
}

// ofOverlay refuses what is no overlay's configuration: an interface that isn't ours, a server outside of private
// addresses, a zone that belongs to others.
func (c DNSConfig) ofOverlay() error {
	if err := c.validate(); err != nil {
		return err
	}
	switch {
	case !strings.HasPrefix(c.Interface, InterfacePrefix):
		return fmt.Errorf("%w: interface %q", ErrDNSConfig, c.Interface)
	case !c.Server.Is6() || c.Server.As16()[0] != 0xfd:
		return fmt.Errorf("%w: server %v", ErrDNSConfig, c.Server)
	}
	for _, d := range append([]string{c.Zone}, c.Search...) {
		if !strings.HasSuffix(d, ".internal") {
			return fmt.Errorf("%w: domain %q", ErrDNSConfig, d)
		}
	}
	for _, d := range c.Reverse {
		if !strings.HasSuffix(d, ".d.f.ip6.arpa") {
			return fmt.Errorf("%w: reverse zone %q", ErrDNSConfig, d)
		}
	}
	return nil
}

// boundedLines ends a stream in which one line is too long for what it may say.
type boundedLines struct {
	r   io.Reader
	run int // bytes since the last end of a line
}

func (b *boundedLines) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	for _, c := range p[:n] {
		if b.run++; c == '\n' {
			b.run = 0
		}
	}
	if b.run > maxDNSLine {
		return 0, fmt.Errorf("a line of more than %d bytes", maxDNSLine)
	}
	return n, err
}

// servedDNS is the daemon's end. Where the other one breaks off, Refresh connects again and sets what was set.
type servedDNS struct {
	socket string
	log    *slog.Logger

	mu      sync.Mutex
	conn    net.Conn      // guarded by mu, as all below; nil: none
	answers *json.Decoder // of conn
	config  *DNSConfig    // nil: nothing is set
	last    dnsAnswer
}

// openServedDNS returns nil where there is no such service, or no need for it.
func openServedDNS(socket string, log *slog.Logger) (DNS, error) {
	if os.Geteuid() == 0 {
		return nil, nil
	}
	if _, err := os.Lstat(socket); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	d, err := dialServedDNS(socket, log)
	if err != nil {
		return nil, err // and not a nil *servedDNS in an interface
	}
	return d, nil
}

func dialServedDNS(socket string, log *slog.Logger) (*servedDNS, error) {
	d := &servedDNS{socket: socket, log: log}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := d.askLocked(dnsQuestion{}); err != nil {
		d.hangUpLocked()
		return nil, fmt.Errorf("%w: %w", ErrDNSUnavailable, err)
	}
	log.Info("DNS", "mode", d.last.Mode, "reason", "by the system service "+socket)
	return d, nil
}

func (d *servedDNS) Mode() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.last.Mode
}

func (d *servedDNS) Upstreams() []netip.AddrPort {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.last.Upstreams)
}

func (d *servedDNS) Set(c DNSConfig) error {
	if err := c.validate(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.config = &c
	_, err := d.askLocked(dnsQuestion{Method: "set", Config: c})
	return err
}

func (d *servedDNS) Refresh() (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.config == nil {
		return false, nil
	}
	if d.conn == nil {
		d.log.Info("the DNS service had ended; setting ours again")
		_, err := d.askLocked(dnsQuestion{Method: "set", Config: *d.config})
		return true, err
	}
	a, err := d.askLocked(dnsQuestion{Method: "refresh"})
	return a.Changed, err
}

// Restore ends the connection too: with it the other end's process goes.
func (d *servedDNS) Restore() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.config = nil
	if d.conn == nil {
		return nil // what the other end had set, it has undone
	}
	_, err := d.askLocked(dnsQuestion{Method: "restore"})
	d.hangUpLocked()
	return err
}

func (d *servedDNS) hangUpLocked() {
	if d.conn != nil {
		d.conn.Close()
		d.conn, d.answers = nil, nil
	}
}

// askLocked asks one question, over a new connection where there is none.
func (d *servedDNS) askLocked(q dnsQuestion) (dnsAnswer, error) {
	if d.conn == nil {
		conn, err := net.DialTimeout("unix", d.socket, dnsServiceLimit)
		if err != nil {
			return dnsAnswer{}, fmt.Errorf("DNS service: %w", err)
		}
		d.conn, d.answers = conn, json.NewDecoder(&boundedLines{r: conn})
	}
	line, err := json.Marshal(q)
	if err == nil {
		err = d.conn.SetDeadline(time.Now().Add(dnsServiceLimit))
	}
	if err == nil {
		_, err = d.conn.Write(append(line, '\n'))
	}
	var a dnsAnswer
	if err == nil {
		err = d.answers.Decode(&a)
	}
	if err != nil {
		d.hangUpLocked()
		return dnsAnswer{}, fmt.Errorf("DNS service: %w", err)
	}
	d.last = a
	if a.Error != "" {
		return a, errors.New(a.Error)
	}
	return a, nil
}
