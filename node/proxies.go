// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/pilot-protocol/pilot/node/gateway"
	"github.com/pilot-protocol/pilot/node/localapi"
)

// proxyUser is the name that goes with the proxies' password.
const proxyUser = "pilot"

// anyLoopback is where a proxy listens that nobody has given an address.
const anyLoopback = "127.0.0.1:0"

// savedProxies is how programs of this host are let into the network.
type savedProxies struct {
	// SOCKS5 and HTTP are as they were asked for: host:port, localapi.ProxyOff, or empty: as the mode has it.
	SOCKS5 string `json:"socks5,omitempty"`
	HTTP   string `json:"http,omitempty"`
	// Direct lets the internet be reached through them too.
	Direct bool `json:"direct,omitempty"`
	// LastSOCKS5 and LastHTTP are where they listened last, to be the same after a restart.
	LastSOCKS5 string `json:"last_socks5,omitempty"`
	LastHTTP   string `json:"last_http,omitempty"`
}

// savedPassword is proxy.key.
type savedPassword struct {
	Version  int    `json:"version"`
	Password string `json:"password"`
}

// proxies are those of a membership.
type proxies struct {
	gateway      *gateway.Gateway
	socks5, http net.Listener // nil: there is none
	password     string
}

// checkProxiesLocked refuses addresses that proxies can't have, and changes while they are in use.
func (n *Node) checkProxiesLocked(r localapi.UpRequest) error {
	for _, a := range []string{r.SOCKS5, r.HTTPProxy} {
		if a == "" || a == localapi.ProxyOff {
			continue
		}
		ap, err := netip.ParseAddrPort(a)
		if err != nil {
			return errUsage(fmt.Sprintf("%q is no address for a proxy", a), "write it like 127.0.0.1:1080; port 0 chooses one; or off")
		}
		if !ap.Addr().IsLoopback() {
			return errUsage("a proxy on "+ap.Addr().String()+" would show its password to the network", "use a loopback address, such as 127.0.0.1:1080")
		}
	}
	if n.member == nil {
		return nil
	}
	s := n.saved.Proxies
	same := func(want, saved, last string) bool { return want == "" || want == saved || want == last }
	if !same(r.SOCKS5, s.SOCKS5, s.LastSOCKS5) || !same(r.HTTPProxy, s.HTTP, s.LastHTTP) || r.ProxyDirect != nil && *r.ProxyDirect != s.Direct {
		return &localapi.Error{Code: localapi.CodeConflict, Message: "the network is up, and its proxies are in use",
			Hint: "to change them: pilot down, then pilot up with the flags"}
	}
	return nil
}

// setProxies keeps what is asked for.
func (n *Node) setProxies(r localapi.UpRequest) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := &n.saved.Proxies
	if n.member != nil {
		return
	}
	if r.SOCKS5 != "" {
		s.SOCKS5 = r.SOCKS5
	}
	if r.HTTPProxy != "" {
		s.HTTP = r.HTTPProxy
	}
	if r.ProxyDirect != nil {
		s.Direct = *r.ProxyDirect
	}
}

// openProxies listens where programs are let in; nil: nowhere.
func (n *Node) openProxies(s *savedProxies, mode string) (*proxies, error) {
	var p proxies
	var err error
	if p.socks5, err = listenProxy(s.SOCKS5, s.LastSOCKS5, mode); err != nil {
		return nil, err
	}
	if p.http, err = listenProxy(s.HTTP, s.LastHTTP, mode); err == nil && p.socks5 == nil && p.http == nil {
		return nil, nil
	}
	if err == nil {
		p.password, err = n.folder.proxyPassword()
	}
	if err != nil {
		p.close()
		return nil, err
	}
	s.LastSOCKS5, s.LastHTTP = p.addr(p.socks5), p.addr(p.http)
	p.gateway = gateway.New(gateway.Options{
		Network: n, SOCKS5: p.socks5, HTTP: p.http, User: proxyUser, Password: p.password, Direct: s.Direct, Log: n.log.With("part", "proxies"),
	})
	return &p, nil
}

// listenProxy opens the address that is wanted, or the one of last time where any will do.
func listenProxy(want, last, mode string) (net.Listener, error) {
	if want == localapi.ProxyOff || want == "" && mode == localapi.TUNKernel {
		return nil, nil
	}
	if want == "" {
		want = anyLoopback
	}
	if wanted, err := netip.ParseAddrPort(want); err == nil && wanted.Port() == 0 {
		if former, err := netip.ParseAddrPort(last); err == nil && former.Addr() == wanted.Addr() {
			if l, err := net.Listen("tcp", last); err == nil {
				return l, nil
			}
		}
	}
	l, err := net.Listen("tcp", want)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, &localapi.Error{Code: localapi.CodePortTaken, Message: "the proxy's address " + want + " is in use",
			Hint: "give it another one (--socks5, --http-proxy), or port 0 for any"}
	}
	return l, err
}

// addr is where a proxy is; empty: there is none.
func (p *proxies) addr(l net.Listener) string {
	if p == nil || l == nil {
		return ""
	}
	return l.Addr().String()
}

// addrs are those of both, empty where there is none.
func (p *proxies) addrs() (socks5, http string) {
	if p == nil {
		return "", ""
	}
	return p.addr(p.socks5), p.addr(p.http)
}

// run lets programs in until ctx ends.
func (p *proxies) run(ctx context.Context) error {
	if p == nil {
		return nil
	}
	return p.gateway.Run(ctx)
}

// close is for proxies that never ran.
func (p *proxies) close() {
	if p == nil {
		return
	}
	for _, l := range []net.Listener{p.socks5, p.http} {
		if l != nil {
			l.Close()
		}
	}
}

// url is what a program has to be told to use a proxy.
func (p *proxies) url(scheme, addr string) string {
	if addr == "" {
		return ""
	}
	u := url.URL{Scheme: scheme, Host: addr, User: url.UserPassword(proxyUser, p.password)}
	return u.String()
}

// proxyPassword returns the password of the proxies, making it the first time.
func (f folder) proxyPassword() (string, error) {
	var saved savedPassword
	found, err := f.read(proxyFile, &saved)
	if err != nil {
		return "", err
	}
	if !found {
		saved = savedPassword{Version: stateVersion, Password: strings.ToLower(rand.Text())}
		return saved.Password, f.write(proxyFile, saved)
	}
	const shortest = 20
	if len(saved.Password) < shortest {
		return "", damaged(filepath.Join(f.dir, proxyFile), fmt.Errorf("a password of %d bytes", len(saved.Password)))
	}
	return saved.Password, nil
}

// Proxies tells what programs have to be told to reach agents through the proxies.
func (n *Node) Proxies(context.Context) (result localapi.Proxies, err error) {
	err = n.view(func(m *membership) error {
		if m.proxies == nil {
			return &localapi.Error{Code: localapi.CodeNotFound, Message: "no proxy runs; programs of this host reach agents by themselves, by name",
				Hint: "to have one all the same: pilot down, then pilot up --http-proxy 127.0.0.1:0"}
		}
		socks5, http := m.proxies.addrs()
		result = localapi.Proxies{SOCKS5: m.proxies.url("socks5h", socks5), HTTP: m.proxies.url("http", http), Direct: n.saved.Proxies.Direct}
		return nil
	})
	return result, err
}
