// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// inNamespace gives the test a network of its own. Its thread ends with it.
func inNamespace(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can make a network namespace")
	}
	runtime.LockOSThread()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
}

func addLink(t *testing.T, name, address string) netlink.Link {
	t.Helper()
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "p"}); err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	addr, err := netlink.ParseAddr(address)
	if err != nil {
		t.Fatal(err)
	}
	addr.Flags = 2 // IFA_F_NODAD
	if err := netlink.AddrAdd(link, addr); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	return link
}

func addRoute(t *testing.T, link netlink.Link, destination string, table int) {
	t.Helper()
	_, dst, err := net.ParseCIDR(destination)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Table: table}); err != nil {
		t.Fatal(err)
	}
}

// Another program's table goes first by a rule, as that of a VPN that takes all traffic does.
func TestRoutesAreTheKernels(t *testing.T) {
	inNamespace(t)
	q := Question{Interface: "pilot0", Prefix: netip.MustParsePrefix("fd5c:1:2::/48")}
	own := addLink(t, "pilot0", "fd5c:1:2::7/128")
	if r, err := routes(q); err != nil || r.Failure == nil {
		t.Errorf("without a route: %+v, %v", r, err)
	}
	addRoute(t, own, "fd5c:1:2::/48", 0)
	other := addLink(t, "wg0", "fd77::1/64")
	addRoute(t, other, "fd00::/8", 0)
	r, err := routes(q)
	if err != nil || r.Chosen != "pilot0" || len(r.Rules) != 0 || len(r.Others) != 1 || r.Others[0].Interface != "wg0" {
		t.Errorf("%+v, %v", r, err)
	}
	addRoute(t, other, "fd5c:1:2:8000::/49", 0)
	addRoute(t, other, "fd5c::/16", 52)
	rule := netlink.NewRule()
	rule.Family, rule.Table, rule.Priority = netlink.FAMILY_V6, 52, 5270
	if err := netlink.RuleAdd(rule); err != nil {
		t.Fatal(err)
	}
	r, err = routes(q)
	if err != nil || r.Chosen != "wg0" || !slices.Equal(r.Rules, []string{"5270: table 52"}) || len(r.Others) != 3 {
		t.Errorf("%+v, %v", r, err)
	}
	found, err := links()
	if err != nil || !slices.ContainsFunc(found, func(l Link) bool { return l.Name == "wg0" && l.Up && l.Kind == "veth" && len(l.Addresses) > 0 }) {
		t.Errorf("%+v, %v", found, err)
	}
}

func TestFirewallIsRead(t *testing.T) {
	inNamespace(t)
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("nft is not installed")
	}
	// A child has the namespace of its thread, which this one stays on.
	for _, c := range []string{"add table inet filter", "add chain inet filter input { type filter hook input priority 0 ; policy drop ; }", "add rule inet filter input udp dport 7745 drop"} {
		if out, err := exec.Command("nft", c).CombinedOutput(); err != nil {
			t.Skipf("this kernel has no nftables: %s: %s", c, out)
		}
	}
	got, err := firewall(t.Context())
	if err != nil || len(got) != 1 || !got[0].Drops || len(got[0].Refusals) != 1 || got[0].Refusals[0].UDPPort != 7745 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestIPv6SwitchedOff(t *testing.T) {
	inNamespace(t)
	addLink(t, "pilot0", "fd5c:1:2::7/128")
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/pilot0/disable_ipv6", []byte("1"), 0); err != nil {
		t.Skipf("can't switch IPv6 off here: %v", err)
	}
	got, err := ipv6()
	if err != nil || got.Missing || !slices.Contains(got.Disabled, "pilot0") {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	now := time.Now()
	if f, err := folder(dir, now); err != nil || f.Exists {
		t.Errorf("absent: %+v, %v", f, err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "coordinator"), 0o700); err != nil {
		t.Fatal(err)
	}
	key, fine := filepath.Join(dir, "coordinator/authority.key"), filepath.Join(dir, "agent.key")
	for path, mode := range map[string]os.FileMode{key: 0o640, fine: 0o600} {
		if err := os.WriteFile(path, nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	later := now.Add(time.Hour)
	if err := os.Chtimes(fine, later, later); err != nil {
		t.Fatal(err)
	}
	f, err := folder(dir, now)
	if err != nil || !f.Exists || !f.Files || f.Problem != nil || f.Free == 0 || !slices.Equal(f.Loose, []string{key}) || f.Future != fine || f.Ahead < 59*time.Minute {
		t.Errorf("%+v, %v", f, err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if f, _ := folder(dir, now); f.Problem == nil {
		t.Error("a folder that all may write is in order")
	}
}

// Everything can be looked at on whatever runs this test, and nothing is waited for without end.
func TestLook(t *testing.T) {
	h := Look(context.Background(), Question{StateDir: t.TempDir(), Socket: "/nonexistent"})
	if h.OS != runtime.GOOS || h.TUN.Value.Path == "" || h.Links.Err != nil || len(h.Links.Value) == 0 || h.Names.Err == nil || h.Routes.Err == nil {
		t.Errorf("%+v", h)
	}
}
