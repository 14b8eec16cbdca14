// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/platform"
	"github.com/pilot-protocol/pilot/platform/inspect"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	now  = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	self = netip.MustParseAddr("fd5c:1:2:3::7")
)

func ptr[T any](v T) *T { return &v }

// healthy is a host on which everything is as it should be, seen by root.
func healthy() Facts {
	return Facts{
		Now: now, Version: "v1.2.3", System: true,
		Host: inspect.Host{
			OS: "linux", Root: true,
			TUN:     inspect.Seen[inspect.TUN]{Value: inspect.TUN{Path: "/dev/net/tun", Exists: true, Admin: true}},
			Service: inspect.Seen[inspect.Unit]{Value: inspect.Unit{Manager: true, Installed: true, Enabled: true, Active: "active"}},
			Group:   inspect.Seen[inspect.Group]{Value: inspect.Group{Name: "pilot", Exists: true}},
			State:   inspect.Seen[inspect.Folder]{Value: inspect.Folder{Path: "/var/lib/pilot", Exists: true, Files: true, Free: 1 << 40}},
			Clock:   inspect.Seen[inspect.Clock]{Value: inspect.Clock{Synchronized: true}},
			Links: inspect.Seen[[]inspect.Link]{Value: []inspect.Link{{Name: "lo", Up: true}, {Name: "eth0", Kind: "device", Up: true},
				{Name: "pilot0", Kind: "tuntap", Up: true, Addresses: []netip.Prefix{netip.PrefixFrom(self, 128)}}}},
			Routes: inspect.Seen[inspect.Routes]{Value: inspect.Routes{Chosen: "pilot0", Ways: []string{"eth0"}}},
			Resolver: inspect.Seen[inspect.Resolver]{Value: inspect.Resolver{
				File: platform.ResolverFile{Search: []string{"pilot.internal"}}, Choice: platform.Decision{Mode: platform.ModeFile, Reason: "a plain file"}}},
			Names: inspect.Seen[inspect.Names]{Value: inspect.Names{System: []netip.Addr{self}, Direct: []netip.Addr{self}}},
		},
		Status: &localapi.Status{
			State: localapi.StateUp, Version: "v1.2.3", Network: "pilot", Zone: "pilot.internal",
			Self: &localapi.Self{Name: "planner", FQDN: "planner.pilot.internal", Address: self, Interface: "pilot0", Port: 7745, DNS: platform.ModeFile,
				CertificateExpires: now.Add(20 * time.Hour), Relays: []localapi.RelayStatus{{Name: "eu-1", Connected: true}}},
			Coordinator: &localapi.CoordinatorState{Connected: true, Addresses: []string{"192.0.2.1:7745"}, ClockOffset: ptr(0.4)},
			Peers:       []localapi.PeerStatus{{Name: "warehouse", State: localapi.PeerConnected, MTU: 1420}},
		},
		Netcheck: &localapi.Netcheck{Code: "easy-nat", Verdict: "direct paths come about"},
	}
}

// without is the same host with no daemon, as root sees it.
func without(code string) Facts {
	f := healthy()
	f.Status, f.Netcheck = nil, nil
	f.DaemonErr = &localapi.Error{Code: code, Message: "no daemon: " + code, Hint: "do something"}
	f.Host.Service.Value.Active = "inactive"
	return f
}

func TestHealthyHost(t *testing.T) {
	r := Examine(healthy())
	if !r.Well || r.Problems+r.Warnings+r.Unseen != 0 || len(r.Findings) < len(checks())-1 {
		t.Errorf("%+v", r)
	}
}

// Each row breaks one thing, and says which codes that must bring, and no others.
func TestEachTrouble(t *testing.T) {
	chain := inspect.Chain{Family: "inet", Table: "filter", Name: "input", Hook: "input"}
	firewall := func(c inspect.Chain, refusals []inspect.Refusal, accepts []inspect.Match) func(*Facts) {
		return func(f *Facts) {
			c.Refusals, c.Accepts = refusals, accepts
			f.Host.Firewall.Value = []inspect.Chain{c}
		}
	}
	closed := chain
	closed.Drops = true
	for name, row := range map[string]struct {
		from   func() Facts
		change func(*Facts)
		codes  string // sorted, space between
	}{
		"no device":                    {from: func() Facts { return without("NOT_RUNNING") }, change: func(f *Facts) { f.Host.TUN.Value = inspect.TUN{Path: "/dev/net/tun", Open: syscall.ENOENT} }, codes: "NOT_RUNNING SERVICE_STOPPED TUN_MISSING"},
		"no module":                    {from: func() Facts { return without("NOT_RUNNING") }, change: func(f *Facts) { f.Host.TUN.Value.Open = syscall.ENODEV }, codes: "NOT_RUNNING SERVICE_STOPPED TUN_MISSING"},
		"device denied in a container": {from: func() Facts { return without("NOT_RUNNING") }, change: func(f *Facts) { f.Host.TUN.Value.Open = syscall.EPERM; f.Host.Container = "docker" }, codes: "NOT_RUNNING SERVICE_STOPPED TUN_DENIED"},
		"device denied to a user":      {from: func() Facts { return without("NOT_RUNNING") }, change: func(f *Facts) { f.Host.TUN.Value.Open = fs.ErrPermission; f.Host.Root = false }, codes: "NOT_RUNNING SERVICE_STOPPED TUN_DENIED"},
		"no CAP_NET_ADMIN":             {from: func() Facts { return without("NOT_RUNNING") }, change: func(f *Facts) { f.Host.TUN.Value.Admin = false }, codes: "NOT_RUNNING SERVICE_STOPPED TUN_DENIED"},
		"no wintun.dll":                {from: func() Facts { return without("NOT_RUNNING") }, change: func(f *Facts) { f.Host.OS = "windows"; f.Host.TUN.Value = inspect.TUN{} }, codes: "NOT_RUNNING SERVICE_STOPPED TUN_MISSING"},
		"no driver, so userspace": {change: func(f *Facts) {
			f.Status.Self.TUN, f.Status.Self.TUNWhy = localapi.TUNUserspace, "no /dev/net/tun"
			f.Host.Routes.Value.Chosen = "eth0"
		}, codes: "TUN_USERSPACE"},
		"userspace was asked for": {change: func(f *Facts) {
			f.Status.Self.TUN, f.Host.IPv6.Value.Missing, f.Host.Names.Value = localapi.TUNUserspace, true, inspect.Names{}
		}},
		"no IPv6 in the kernel":           {change: func(f *Facts) { f.Host.IPv6.Value.Missing = true }, codes: "IPV6_OFF"},
		"IPv6 off on the interface":       {change: func(f *Facts) { f.Host.IPv6.Value.Disabled = []string{"eth0", "pilot0"} }, codes: "IPV6_OFF"},
		"IPv6 off elsewhere":              {change: func(f *Facts) { f.Host.IPv6.Value.Disabled = []string{"all", "default"} }, codes: "IPV6_OFF_ELSEWHERE"},
		"service failed":                  {from: func() Facts { return without("NOT_RUNNING") }, change: func(f *Facts) { f.Host.Service.Value.Active = "failed"; f.Host.Service.Value.Result = "exit-code" }, codes: "NOT_RUNNING SERVICE_FAILED"},
		"service in a loop":               {from: func() Facts { return without("NOT_RUNNING") }, change: func(f *Facts) { f.Host.Service.Value.Active = "activating"; f.Host.Service.Value.Restarts = 7 }, codes: "NOT_RUNNING SERVICE_FAILING"},
		"service stopped":                 {from: func() Facts { return without("NOT_RUNNING") }, change: func(*Facts) {}, codes: "NOT_RUNNING SERVICE_STOPPED"},
		"service disabled":                {change: func(f *Facts) { f.Host.Service.Value.Enabled = false }, codes: "SERVICE_DISABLED"},
		"daemon beside the service":       {change: func(f *Facts) { f.Host.Service.Value.Active = "inactive" }, codes: "SERVICE_BESIDE"},
		"no service, systemd":             {change: func(f *Facts) { f.Host.Service.Value.Installed = false }, codes: "SERVICE_MISSING"},
		"another state folder, no daemon": {from: func() Facts { return without("NOT_RUNNING") }, change: func(f *Facts) { f.System = false }, codes: "NOT_RUNNING"},
		"daemon hangs":                    {from: func() Facts { return without("TIMEOUT") }, change: func(f *Facts) { f.Host.Service.Value.Active = "active" }, codes: "DAEMON_HANGS"},
		"socket squatted":                 {from: func() Facts { return without("INSECURE_PATH") }, change: func(f *Facts) { f.Host.Service.Value.Active = "active" }, codes: "SOCKET_SQUATTED"},
		"no network": {change: func(f *Facts) {
			f.Status = &localapi.Status{State: localapi.StateDown, Version: "v1.2.3"}
			f.Netcheck = nil
		}, codes: "NOT_UP"},
		"network coming up": {change: func(f *Facts) {
			f.Status = &localapi.Status{State: localapi.StateStarting, Version: "v1.2.3"}
			f.Netcheck = nil
		}, codes: "NOT_UP"},
		"not in the group":               {from: func() Facts { return without("PERMISSION") }, change: func(f *Facts) { f.Host.Service.Value.Active = "active" }, codes: "PERMISSION"},
		"no group":                       {from: func() Facts { return without("PERMISSION") }, change: func(f *Facts) { f.Host.Service.Value.Active = "active"; f.Host.Group.Value.Exists = false }, codes: "PERMISSION"},
		"not logged in again":            {from: func() Facts { return without("PERMISSION") }, change: func(f *Facts) { f.Host.Service.Value.Active = "active"; f.Host.Group.Value.Listed = true }, codes: "PERMISSION"},
		"socket not of the group":        {from: func() Facts { return without("PERMISSION") }, change: func(f *Facts) { f.Host.Service.Value.Active = "active"; f.Host.Group.Value.Member = true }, codes: "SOCKET_GROUP"},
		"old daemon":                     {change: func(f *Facts) { f.Status.Version = "v1.1.9" }, codes: "VERSION_OLD"},
		"daemon of another major":        {change: func(f *Facts) { f.Status.Version = "v2.0.0" }, codes: "VERSION_DIFFERS"},
		"daemon refused by its version":  {from: func() Facts { return without("VERSION_DIFFERS") }, change: func(f *Facts) { f.Host.Service.Value.Active = "active" }, codes: "VERSION_DIFFERS"},
		"folder of somebody else":        {change: func(f *Facts) { f.Host.State.Value.Problem = platform.ErrInsecurePath }, codes: "STATE_INSECURE"},
		"key readable by others":         {change: func(f *Facts) { f.Host.State.Value.Loose = []string{"/var/lib/pilot/agent.key"} }, codes: "STATE_EXPOSED"},
		"disk full":                      {change: func(f *Facts) { f.Host.State.Value.Free = 1 << 20 }, codes: "DISK_FULL"},
		"disk nearly full":               {change: func(f *Facts) { f.Host.State.Value.Free = 100 << 20 }, codes: "DISK_LOW"},
		"disk read-only":                 {change: func(f *Facts) { f.Host.State.Value.ReadOnly = true }, codes: "DISK_READONLY"},
		"clock behind the coordinator's": {change: func(f *Facts) { f.Status.Coordinator.ClockOffset = ptr(3600.0) }, codes: "CLOCK_WRONG"},
		"clock a little ahead":           {change: func(f *Facts) { f.Status.Coordinator.ClockOffset = ptr(-90.0) }, codes: "CLOCK_OFF"},
		"certificate of the future": {change: func(f *Facts) {
			f.Status.Coordinator.ClockOffset = nil
			f.Status.Self.CertificateExpires = now.Add(48 * time.Hour)
		}, codes: "CLOCK_WRONG"},
		"files of the future":  {change: func(f *Facts) { f.Host.State.Value.Ahead = time.Hour }, codes: "CLOCK_BACK"},
		"clock kept by nobody": {change: func(f *Facts) { f.Status.Coordinator.ClockOffset = nil; f.Host.Clock.Value.Synchronized = false }, codes: "CLOCK_UNSYNCHRONIZED"},
		"another way for the prefix": {change: func(f *Facts) {
			f.Host.Routes.Value.Chosen = "tailscale0"
			f.Host.Routes.Value.Rules = []string{"5270: table 52"}
		}, codes: "ROUTE_TAKEN"},
		"route gone": {change: func(f *Facts) { f.Host.Routes.Value = inspect.Routes{Failure: syscall.ENETUNREACH} }, codes: "ROUTE_MISSING"},
		"a route inside the prefix": {change: func(f *Facts) {
			f.Host.Routes.Value.Others = []inspect.Route{{Destination: netip.MustParsePrefix("fd5c:1:2:8000::/49"), Interface: "wg0"}}
		}, codes: "ROUTE_CONFLICT"},
		"a wider route loses": {change: func(f *Facts) {
			f.Host.Routes.Value.Others = []inspect.Route{{Destination: netip.MustParsePrefix("fd00::/8"), Interface: "wg0"}}
		}},
		"strict filter, several ways": {change: func(f *Facts) {
			f.Host.Routes.Value.Ways = []string{"eth0", "wlan0"}
			f.Host.Routes.Value.Strict = []string{"wlan0"}
		}, codes: "RP_FILTER"},
		"a VPN in peace": {change: func(f *Facts) {
			f.Host.Links.Value = append(f.Host.Links.Value, inspect.Link{Name: "tailscale0", Kind: "tuntap", Up: true})
		}},
		"a VPN with our addresses": {change: func(f *Facts) {
			f.Host.Links.Value = append(f.Host.Links.Value, inspect.Link{Name: "wg0", Kind: "wireguard", Up: true, Addresses: []netip.Prefix{netip.MustParsePrefix("fd5c:1:2::1/64")}})
		}, codes: "VPN_ADDRESS"},
		"rule against the interface":       {change: firewall(chain, []inspect.Refusal{{Match: inspect.Match{Interface: "pilot*"}}}, nil), codes: "FIREWALL_OVERLAY"},
		"rule against all private":         {change: firewall(chain, []inspect.Refusal{{Match: inspect.Match{Prefix: netip.MustParsePrefix("fc00::/7")}}}, nil), codes: "FIREWALL_OVERLAY"},
		"rule with more conditions":        {change: firewall(chain, []inspect.Refusal{{Match: inspect.Match{Interface: "pilot0", Other: true}}}, nil)},
		"rule against another prefix":      {change: firewall(chain, []inspect.Refusal{{Match: inspect.Match{Prefix: netip.MustParsePrefix("fd99::/16")}}}, nil)},
		"rule against the port":            {change: firewall(chain, []inspect.Refusal{{Match: inspect.Match{UDPPort: 7745}}}, nil), codes: "FIREWALL_UDP"},
		"rule against another port":        {change: firewall(chain, []inspect.Refusal{{Match: inspect.Match{UDPPort: 53}}}, nil)},
		"closed firewall":                  {change: firewall(closed, nil, []inspect.Match{{Interface: "lo"}, {Other: true}}), codes: "FIREWALL_CLOSED"},
		"closed firewall that lets us in":  {change: firewall(closed, nil, []inspect.Match{{Interface: "pilot0"}})},
		"IPv4's rules are not the network": {change: firewall(inspect.Chain{Family: "ip", Hook: "input", Drops: true}, nil, nil)},
		"no fence": {change: func(f *Facts) {
			f.Status.Problems = []localapi.Problem{{Code: "UNFENCED", Message: "no nf_tables", Hint: "modprobe nf_tables"}}
		}, codes: "UNFENCED"},
		"name shadowed": {change: func(f *Facts) { f.Host.Names.Value.System = []netip.Addr{netip.MustParseAddr("192.0.2.66")} }, codes: "DNS_SHADOWED"},
		"resolver does not ask us": {change: func(f *Facts) {
			f.Host.Names.Value.System, f.Host.Names.Value.SystemErr = nil, errors.New("no such host")
		}, codes: "DNS_OVERRIDDEN"},
		"our DNS dead":         {change: func(f *Facts) { f.Host.Names.Value = inspect.Names{DirectErr: os.ErrDeadlineExceeded} }, codes: "DNS_DEAD"},
		"nobody could be told": {change: func(f *Facts) { f.Status.Self.DNS = "none"; f.Host.Resolver.Value.Immutable = true }, codes: "DNS_NONE"},
		"immutable file": {from: func() Facts { return without("NOT_RUNNING") }, change: func(f *Facts) {
			f.System = false
			f.Host.Resolver.Value.Choice.Mode, f.Host.Resolver.Value.Immutable = platform.ModeNone, true
		}, codes: "DNS_IMMUTABLE NOT_RUNNING"},
		"search list without the zone": {change: func(f *Facts) { f.Host.Resolver.Value.File.Search = []string{"example.com"} }, codes: "DNS_SEARCH"},
		"two writers":                  {change: func(f *Facts) { f.Host.Resolver.Value.File.Owner = "dhcpcd" }, codes: "DNS_TWO_WRITERS"},
		"zone claimed": {change: func(f *Facts) {
			f.Host.Resolver.Value.Claims = []inspect.Claim{{Interface: "wt0", Domain: "internal"}, {Interface: "pilot0", Domain: "pilot.internal"}}
		}, codes: "DNS_CLAIMED"},
		"resolved forgot us": {change: func(f *Facts) {
			f.Status.Self.DNS = platform.ModeResolved
			f.Host.Resolver.Value.Claims = []inspect.Claim{{Interface: "eth0", Domain: "example.com"}}
		}, codes: "DNS_OVERRIDDEN"},
		"coordinator gone": {change: func(f *Facts) {
			f.Status.Coordinator.Connected, f.Status.Coordinator.Error = false, "connection refused"
		}, codes: "COORDINATOR_UNREACHABLE"},
		"another coordinator":      {change: func(f *Facts) { f.Status.Coordinator.Connected, f.Status.Coordinator.Code = false, "KEY_MISMATCH" }, codes: "COORDINATOR_KEY"},
		"certificate late":         {change: func(f *Facts) { f.Status.Self.CertificateExpires = now.Add(5 * time.Hour) }, codes: "CERTIFICATE_LATE"},
		"certificate near its end": {change: func(f *Facts) { f.Status.Self.CertificateExpires = now.Add(30 * time.Minute) }, codes: "CERTIFICATE_EXPIRES"},
		"certificate expired":      {change: func(f *Facts) { f.Status.Self.CertificateExpires = now.Add(-time.Minute) }, codes: "CERTIFICATE_EXPIRED"},
		"no relays in the network": {change: func(f *Facts) { f.Status.Self.Relays = nil }, codes: "NO_RELAYS"},
		"no relay reached":         {change: func(f *Facts) { f.Status.Self.Relays = []localapi.RelayStatus{{Name: "eu-1", Error: "refused"}} }, codes: "NO_RELAY"},
		"all relays avoided":       {change: func(f *Facts) { f.Status.Self.Relays = []localapi.RelayStatus{{Name: "eu-1", Avoided: true}} }, codes: "NO_RELAY"},
		"login page":               {change: func(f *Facts) { f.Netcheck.Code = "captive" }, codes: "CAPTIVE"},
		"offline":                  {change: func(f *Facts) { f.Netcheck.Code = "offline" }, codes: "OFFLINE"},
		"UDP blocked":              {change: func(f *Facts) { f.Netcheck.Code = "udp-blocked" }, codes: "UDP_BLOCKED"},
		"only a proxy":             {change: func(f *Facts) { f.Netcheck.Code, f.Netcheck.Proxy = "udp-blocked", "proxy:3128" }, codes: "PROXY_ONLY"},
		"hard NAT":                 {change: func(f *Facts) { f.Netcheck.Code = "hard-nat" }, codes: "HARD_NAT"},
		"narrow path":              {change: func(f *Facts) { f.Status.Peers[0].MTU = 900 }, codes: "MTU_NARROW"},
		"changed key of a peer": {change: func(f *Facts) {
			f.Status.Problems = []localapi.Problem{{Code: "KEY_MISMATCH", Message: "x"}, {Code: "UNAVAILABLE", Message: "said by coordinator"}}
		}, codes: "KEY_MISMATCH"},
	} {
		t.Run(name, func(t *testing.T) {
			f := healthy()
			if row.from != nil {
				f = row.from()
			}
			row.change(&f)
			r := Examine(f)
			var codes []string
			problems := 0
			for _, x := range r.Findings {
				if x.Code != "" {
					codes = append(codes, x.Code)
				}
				if x.Result == Problem {
					problems++
				}
				if (x.Result == Problem || x.Result == Warning) && (x.Code == "" || x.Hint == "") {
					// What the daemon says itself brings its own hint, or none.
					if x.Check != "other" {
						t.Errorf("no code or no remedy: %+v", x)
					}
				}
				if x.Message == "" || x.Check == "" {
					t.Errorf("empty: %+v", x)
				}
			}
			slices.Sort(codes)
			if got := strings.Join(codes, " "); got != row.codes {
				t.Errorf("got %q, want %q:\n%+v", got, row.codes, r.Findings)
			}
			if r.Well != (problems == 0) || r.Problems != problems {
				t.Errorf("well %v, %d problems", r.Well, r.Problems)
			}
		})
	}
}

// What can't be seen is said, and is no problem.
func TestUnseen(t *testing.T) {
	f := healthy()
	f.Host = inspect.Host{OS: "linux"}
	for _, err := range []*error{&f.Host.Service.Err, &f.Host.Group.Err, &f.Host.State.Err, &f.Host.Clock.Err, &f.Host.IPv6.Err, &f.Host.Links.Err,
		&f.Host.Routes.Err, &f.Host.Resolver.Err, &f.Host.Names.Err, &f.Host.Firewall.Err} {
		*err = fmt.Errorf("look: %w", fs.ErrPermission)
	}
	r := Examine(f)
	if !r.Well || r.Warnings != 0 || r.Unseen != 8 { // the clock agrees with the coordinator's; the daemon answers, so access is clear
		t.Errorf("%+v", r)
	}
	for _, x := range r.Findings {
		if x.Result == Unknown && !strings.Contains(x.Hint, "sudo") {
			t.Errorf("no hint that root sees more: %+v", x)
		}
	}
}

// No combination of what is missing makes a check fall over.
func FuzzExamine(f *testing.F) {
	f.Add(uint32(0), "v1.0.0", "pilot0", "internal")
	f.Add(^uint32(0), "v2.0.0", "", ".")
	f.Add(uint32(0x5555), "", "wg0", "")
	f.Fuzz(func(t *testing.T, bits uint32, version, name, domain string) {
		facts := healthy()
		facts.Version = version
		facts.Host.Links.Value = append(facts.Host.Links.Value, inspect.Link{Name: name, Up: true})
		facts.Host.Resolver.Value.Claims = []inspect.Claim{{Interface: name, Domain: domain}}
		for i, cut := range []func(){
			func() { facts.Status = nil }, func() { facts.Netcheck = nil }, func() { facts.Host = inspect.Host{} },
			func() { facts.DaemonErr = &localapi.Error{Code: domain} }, func() { facts.NetcheckErr = &localapi.Error{Code: name} },
			func() { facts.Host.Routes.Value = inspect.Routes{Failure: errors.New(name)} },
			func() {
				if facts.Status != nil {
					facts.Status.Self = nil
				}
			},
			func() {
				if facts.Status != nil {
					facts.Status.Coordinator = nil
				}
			},
			func() {
				if self := facts.self(); self != nil {
					self.Address = netip.Addr{}
				}
			},
		} {
			if bits&(1<<i) != 0 {
				cut()
			}
		}
		r := Examine(facts)
		if r.Well != (r.Problems == 0) {
			t.Errorf("%+v", r)
		}
	})
}

// Each code is in the table of docs/operating.md, and nothing else is.
func TestCodesAreDocumented(t *testing.T) {
	var codes []string
	for _, file := range []string{"host.go", "network.go", "names.go"} {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range regexp.MustCompile(`(?:problem|warning)\("([A-Z0-9_]+)"`).FindAllStringSubmatch(string(source), -1) {
			codes = append(codes, found[1])
		}
	}
	text, err := os.ReadFile("../../docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n### What doctor finds\n")
	section, _, _ = strings.Cut(section, "\n#")
	var documented []string
	for line := range strings.Lines(section) {
		cells := strings.Split(line, "|")
		if len(cells) < 3 {
			continue
		}
		for _, found := range regexp.MustCompile("`([A-Z0-9_]+)`").FindAllStringSubmatch(cells[1], -1) {
			documented = append(documented, found[1])
		}
	}
	slices.Sort(codes)
	slices.Sort(documented)
	if codes = slices.Compact(codes); !slices.Equal(codes, documented) {
		t.Errorf("in the source:\n%q\nin docs/operating.md:\n%q", codes, documented)
	}
}
