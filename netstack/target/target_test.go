// SPDX-License-Identifier: Apache-2.0

package target

import (
	"net/netip"
	"testing"
)

// What must not be reached through a stack or a proxy is found out in every dress.
func TestAbuse16TargetClasses(t *testing.T) {
	for class, addresses := range map[Class][]string{
		Public: {
			"1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.0", "172.15.0.1", "172.32.0.1", "192.167.0.1", "198.20.0.1", "223.255.255.255",
			"2606:4700::1111", "2a00::1", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1", "2002:101:101::1",
			"2001:0:102:304:0:0:fefe:fefe", "2a00::5efe:101:101",
		},
		Private: {
			"10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "100.127.255.255", "fd12:3456::1", "fc00::1", "fec0::1",
			"::ffff:10.0.0.1", "64:ff9b::192.168.0.1", "2002:a00:1::1", "2001:0:102:304:0:0:f5ff:fffe", "2001:0:a00:1:0:0:fefe:fefe",
			"64:ff9b:1::1.1.1.1", "64:ff9b:1::10.0.0.1", "2a00::200:5efe:10.0.0.1",
		},
		Reserved: {
			"192.0.0.1", "192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "198.19.255.255", "240.0.0.1", "192.88.99.1",
			"2001:db8::1", "3fff::1", "2001:2::1", "2001:10::1", "2001:20::1", "100::1", "5f00::1", "4000::1", "e000::1", "::8.8.8.8", "::ffff:0:8.8.8.8",
			"64:ff9b::240.0.0.1",
		},
		Multicast:   {"224.0.0.1", "239.255.255.255", "255.255.255.255", "ff02::1", "ff0e::1", "::ffff:224.0.0.1", "64:ff9b::224.0.0.1", "2002:e000:1::"},
		Unspecified: {"0.0.0.0", "0.1.2.3", "::", "::2", "::ffff:0.0.0.0", "64:ff9b::", "2002::", "2002:1:1::"},
		LinkLocal: {
			"169.254.0.1", "169.254.255.255", "fe80::1", "fe80::1%eth0", "febf::1", "::ffff:169.254.1.1", "64:ff9b::169.254.1.1", "2002:a9fe:101::1",
			"fe80::5efe:8.8.8.8", "2a00::5efe:169.254.1.1",
		},
		Loopback: {
			"127.0.0.1", "127.255.255.255", "::1", "::1%lo", "::ffff:127.0.0.1", "::127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b::127.0.0.1",
			"64:ff9b:1::127.0.0.1", "64:ff9b:1:0:7f:0:100:0", "64:ff9b:1:7f:0:1::", "64:ff9b:1:7f00:0:100::",
			"2002:7f00:1::1", "2001:0:102:304:0:0:80ff:fffe", "2a00::5efe:127.0.0.1",
		},
		Metadata: {
			"169.254.169.254", "169.254.169.253", "169.254.170.2", "169.254.170.23", "169.254.42.42", "169.254.0.23", "100.100.100.200",
			"168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:42::42", "fe80::a9fe:a9fe", "fe80::a9fe:a9fe%eth0",
			"fd00:c1::a9fe:a9fe",
			"::ffff:169.254.169.254", "::169.254.169.254", "::ffff:0:169.254.169.254", "64:ff9b::169.254.169.254", "64:ff9b:1::169.254.169.254",
			"64:ff9b:1:a9fe:a9:fe00::", "2002:a9fe:a9fe::1", "2001:0:102:304:0:0:5601:5601", "2001:0:a9fe:a9fe:0:0:fefe:fefe", "fe80::200:5efe:169.254.169.254",
		},
	} {
		for _, text := range addresses {
			a := netip.MustParseAddr(text)
			if got := ClassOf(a); got != class {
				t.Errorf("%s is %v, want %v", text, got, class)
			}
			if class.Never() != (class != Public && class != Private) {
				t.Errorf("%v: Never is %v", class, class.Never())
			}
		}
	}
	if c := ClassOf(netip.Addr{}); c != Invalid || !c.Never() {
		t.Errorf("the zero address is %v", c)
	}
}

// A rule about an address is not evaded by another way of writing it.
func TestAbuse16TargetReal(t *testing.T) {
	for text, want := range map[string]string{
		"1.2.3.4": "1.2.3.4", "2a00::1": "2a00::1", "::1": "::1", "::": "::", "fe80::1%eth0": "fe80::1",
		"::ffff:1.2.3.4": "1.2.3.4", "::1.2.3.4": "1.2.3.4", "::ffff:0:1.2.3.4": "1.2.3.4", "64:ff9b::1.2.3.4": "1.2.3.4",
		"64:ff9b:1::1.2.3.4": "1.2.3.4", "2002:102:304::1": "1.2.3.4", "2001:0:506:708:0:0:fefd:fcfb": "1.2.3.4",
		"2a00::5efe:1.2.3.4": "2a00::5efe:1.2.3.4",
	} {
		if got := Real(netip.MustParseAddr(text)); got != netip.MustParseAddr(want) {
			t.Errorf("%s is really %v, want %s", text, got, want)
		}
	}
	if Real(netip.Addr{}).IsValid() {
		t.Error("the zero address became one")
	}
}

// However an IPv4 address that may never be reached is dressed up, it is recognised.
func FuzzAbuse16Target(f *testing.F) {
	f.Add([]byte{127, 0, 0, 1}, uint64(0))
	f.Add([]byte{169, 254, 169, 254}, uint64(0x123456789abcdef0))
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}, uint64(0))
	f.Fuzz(func(t *testing.T, raw []byte, noise uint64) {
		a, ok := netip.AddrFromSlice(raw)
		if !ok {
			return
		}
		class := ClassOf(a)
		if class == Invalid || class > Metadata || class.String() == "" {
			t.Fatalf("%v is %v", a, class)
		}
		if c := ClassOf(a.WithZone("x")); c != class {
			t.Errorf("%v is %v, with a zone %v", a, class, c)
		}
		if real := Real(a); !class.Never() && ClassOf(real).Never() {
			t.Errorf("%v is %v and stands for %v", a, class, real)
		}
		if !a.Is4() {
			return
		}
		b := a.As4()
		n := [8]byte{byte(noise), byte(noise >> 8), byte(noise >> 16), byte(noise >> 24), byte(noise >> 32), byte(noise >> 40), byte(noise >> 48), byte(noise >> 56)}
		dresses := map[string][16]byte{
			"mapped":     {10: 0xff, 11: 0xff, 12: b[0], 13: b[1], 14: b[2], 15: b[3]},
			"translated": {8: 0xff, 9: 0xff, 12: b[0], 13: b[1], 14: b[2], 15: b[3]},
			"NAT64":      {1: 0x64, 2: 0xff, 3: 0x9b, 12: b[0], 13: b[1], 14: b[2], 15: b[3]},
			"local":      {1: 0x64, 2: 0xff, 3: 0x9b, 5: 1, 6: n[0], 7: n[1], 12: b[0], 13: b[1], 14: b[2], 15: b[3]},
			"6to4":       {0x20, 2, b[0], b[1], b[2], b[3], n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7]},
			"Teredo":     {0x20, 1, 0, 0, n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], ^b[0], ^b[1], ^b[2], ^b[3]},
			"ISATAP":     {0x2a, n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7] & 2, 0, 0x5e, 0xfe, b[0], b[1], b[2], b[3]},
		}
		for name, d := range dresses {
			dressed := netip.AddrFrom16(d)
			if got := ClassOf(dressed); got < class {
				t.Errorf("%v as %s, %v, is %v, want at least %v", a, name, dressed, got, class)
			}
			if name != "ISATAP" && Real(dressed) != a {
				t.Errorf("%v as %s, %v, is really %v", a, name, dressed, Real(dressed))
			}
		}
	})
}

func TestNoAllocation(t *testing.T) {
	a := netip.MustParseAddr("2001:0:a9fe:a9fe:0:0:fefe:fefe")
	if n := testing.AllocsPerRun(100, func() { ClassOf(a); Real(a) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
