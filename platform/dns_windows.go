// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"unsafe"

	"golang.org/x/sys/windows"
)

// nrptDNS adds a rule to the Name Resolution Policy Table.
type nrptDNS struct {
	stateDir string
	log      *slog.Logger

	mu     sync.Mutex
	config *DNSConfig // guarded by mu
}

// OpenDNS prepares to tell Windows which domains are ours. What a killed process left changed is undone first.
func OpenDNS(o Options) (DNS, error) {
	if err := RestoreDNS(o.StateDir, o.logger()); err != nil {
		return nil, err
	}
	return &nrptDNS{stateDir: o.StateDir, log: o.logger()}, nil
}

// RestoreDNS undoes what a process that was killed, and used this state folder, had set.
func RestoreDNS(stateDir string, _ *slog.Logger) error {
	r, err := loadDNSRecord(stateDir)
	if err != nil || r == nil {
		return err
	}
	if err := powershell(nrptRemove(r.Interface)).run(); err != nil {
		return fmt.Errorf("restore DNS: %w", err)
	}
	return removeDNSRecord(stateDir)
}

func (d *nrptDNS) Mode() string { return "nrpt" }

func (d *nrptDNS) Set(c DNSConfig) error {
	if err := c.validate(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.config != nil && equalConfig(*d.config, c) {
		return nil
	}
	record := dnsRecord{Mode: d.Mode(), Interface: c.Interface, Server: c.Server}
	if err := record.save(d.stateDir); err != nil {
		return fmt.Errorf("set DNS: %w", err)
	}
	if err := powershell(nrptSet(c)).run(); err != nil {
		return fmt.Errorf("set DNS: %w", err)
	}
	d.config = &c
	return nil
}

// Upstreams are the servers of the adapters that are up.
func (d *nrptDNS) Upstreams() []netip.AddrPort {
	d.mu.Lock()
	defer d.mu.Unlock()
	own := netip.Addr{}
	if d.config != nil {
		own = d.config.Server
	}
	servers, err := adapterServers()
	if err != nil {
		d.log.Warn("the system's resolvers aren't known", "error", err)
	}
	return upstreams(servers, own)
}

func adapterServers() ([]netip.Addr, error) {
	const flags = windows.GAA_FLAG_SKIP_ANYCAST | windows.GAA_FLAG_SKIP_MULTICAST | windows.GAA_FLAG_SKIP_UNICAST
	size := uint32(15 << 10) // what the documentation of GetAdaptersAddresses recommends
	for {
		buf := make([]byte, size)
		first := (*windows.IpAdapterAddresses)(unsafe.Pointer(&buf[0]))
		err := windows.GetAdaptersAddresses(windows.AF_UNSPEC, flags, 0, first, &size)
		if errors.Is(err, windows.ERROR_BUFFER_OVERFLOW) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var out []netip.Addr
		for a := first; a != nil; a = a.Next {
			if a.OperStatus != windows.IfOperStatusUp {
				continue
			}
			for s := a.FirstDnsServerAddress; s != nil; s = s.Next {
				if ip, ok := netip.AddrFromSlice(s.Address.IP()); ok {
					out = append(out, ip.Unmap())
				}
			}
		}
		return out, nil
	}
}

// Refresh has nothing to do: nobody else touches our rule.
func (d *nrptDNS) Refresh() (bool, error) { return false, nil }

func (d *nrptDNS) Restore() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.config == nil {
		return nil
	}
	if err := powershell(nrptRemove(d.config.Interface)).run(); err != nil {
		return fmt.Errorf("restore DNS: %w", err)
	}
	d.config = nil
	return removeDNSRecord(d.stateDir)
}

// powershell runs a script without profile or window.
func powershell(script string) command {
	return command{"powershell.exe", "-NoProfile", "-NonInteractive", "-ExecutionPolicy", "Bypass", "-Command", script}
}
