// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestParseEgress(t *testing.T) {
	for _, c := range []struct {
		rules []string
		want  string // empty: an error
	}{
		{[]string{"none"}, "-"},
		{nil, "-"},
		{[]string{"all"}, "all"},
		{[]string{"ALL:5-7"}, "all:5-7"},
		{[]string{"None"}, "-"},
		{[]string{"*.test"}, "*.test"},
		{[]string{"all:443"}, "all:443"},
		{[]string{"Example.TEST.:443"}, "example.test:443"},
		{[]string{"example.test:443,example.test:443", "example.test"}, "example.test:443 example.test"},
		{[]string{"*.example.test:1-1024"}, "*.example.test:1-1024"},
		{[]string{"10.0.0.0/8:5432", "192.0.2.1"}, "10.0.0.0/8:5432 192.0.2.1"},
		{[]string{"[2001:db8::/32]:443", "2001:db8::1", "[2001:db8::2]:80", "[2001:db8::3]"}, "[2001:db8::/32]:443 2001:db8::1 [2001:db8::2]:80 2001:db8::3"},
		{[]string{" a.test , b.test "}, "a.test b.test"},
		{[]string{"_dns.example.test"}, "_dns.example.test"},

		{[]string{""}, ""},
		{[]string{"localhost"}, ""},
		{[]string{"none."}, ""},
		{[]string{"none,example.test"}, ""},
		{[]string{"example.test:"}, ""},
		{[]string{"example.test:0"}, ""},
		{[]string{"example.test:70000"}, ""},
		{[]string{"example.test:443-80"}, ""},
		{[]string{"example.test:+5"}, ""},
		{[]string{"example.test/8"}, ""},
		{[]string{"*"}, ""},
		{[]string{"*.*.test"}, ""},
		{[]string{"a.*.test"}, ""},
		{[]string{"*example.test"}, ""},
		{[]string{"bücher.test"}, ""},
		{[]string{"-a.test"}, ""},
		{[]string{"a..test"}, ""},
		{[]string{"a b.test"}, ""},
		{[]string{"a\n.test"}, ""},
		{[]string{strings.Repeat("a.", 127) + "test"}, ""},
		{[]string{"10.0.0.1/8"}, ""},
		{[]string{"10.0.0/8"}, ""},
		{[]string{"10.0.0.300"}, ""},
		{[]string{"::ffff:10.0.0.1"}, ""},
		{[]string{"fe80::1%eth0"}, ""},
		{[]string{"[2001:db8::1"}, ""},
		{[]string{"[2001:db8::1]443"}, ""},
		{[]string{"[2001:db8::1]:"}, ""},
		{[]string{"[example.test]:x"}, ""},
	} {
		e, err := ParseEgress(c.rules)
		if c.want == "" {
			if !errors.Is(err, ErrEgress) {
				t.Errorf("%q: %v, %v", c.rules, e.Rules(), err)
			}
			continue
		}
		if got := strings.Join(e.Rules(), " "); err != nil || got != strings.TrimPrefix(c.want, "-") {
			t.Errorf("%q: %q, %v instead of %q", c.rules, got, err, c.want)
		}
	}
}

func egress(t testing.TB, rules ...string) *Egress {
	t.Helper()
	e, err := ParseEgress(rules)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestEgressNames(t *testing.T) {
	e := egress(t, "example.test:443,*.wild.test:80-90")
	for name, want := range map[string][2]bool{ // at ports 443, 85
		"example.test": {true, false}, "www.example.test": {}, "testexample.test": {}, "wild.test": {}, ".wild.test": {},
		"a.wild.test": {false, true}, "b.a.wild.test": {false, true}, "awild.test": {}, "": {}, "test": {},
	} {
		if got := [2]bool{e.MayReachNamed(name, 443), e.MayReachNamed(name, 85)}; got != want {
			t.Errorf("%q: %v", name, got)
		}
		if e.MayAsk(name) != (want[0] || want[1]) {
			t.Errorf("ask for %q: %v", name, e.MayAsk(name))
		}
	}
	if !egress(t, "all:443").MayAsk("anything.test") || egress(t, "all").MayReachNamed("anything.test", 80) {
		t.Error("all allows every name, and none by itself")
	}
	if (*Egress)(nil).MayAsk("a.test") || new(Egress).MayReach(netip.MustParseAddr("5.5.5.5"), 80, PlacePublic) {
		t.Error("no rules allow something")
	}
}

func TestEgressAddresses(t *testing.T) {
	for _, c := range []struct {
		rules, to string
		port      uint16
		want      [3]bool // public, private, the host's
	}{
		{"none", "5.5.5.5", 443, [3]bool{}},
		{"all", "5.5.5.5", 443, [3]bool{true, false, false}},
		{"all:80", "5.5.5.5", 443, [3]bool{}},
		{"5.5.5.5:443", "5.5.5.5", 443, [3]bool{true, true, true}},
		{"5.5.5.5:443", "5.5.5.5", 80, [3]bool{}},
		{"5.5.5.5:443", "5.5.5.5", 0, [3]bool{true, true, true}},
		{"5.5.5.5", "5.5.5.6", 443, [3]bool{}},
		{"10.0.0.0/8", "10.1.2.3", 443, [3]bool{true, true, false}},
		{"0.0.0.0/0", "10.1.2.3", 443, [3]bool{true, false, false}},
		{"fc00::/7", "fd00::1", 443, [3]bool{true, true, false}},
		{"::/0", "fd00::1", 443, [3]bool{true, false, false}},
		{"0.0.0.0/0", "2001:db8::1", 443, [3]bool{}},
		{"example.test", "5.5.5.5", 443, [3]bool{}},
	} {
		e := egress(t, c.rules)
		var got [3]bool
		for place := range got {
			got[place] = e.MayReach(netip.MustParseAddr(c.to), c.port, Place(place))
		}
		if got != c.want {
			t.Errorf("%s, to %s port %d: %v", c.rules, c.to, c.port, got)
		}
	}
	if got := egress(t, "10.0.0.0/8,5.5.5.5:443,[2001:db8::1]:80,all").Literals(); !slices.Equal(got, []netip.Addr{netip.MustParseAddr("5.5.5.5"), netip.MustParseAddr("2001:db8::1")}) {
		t.Errorf("literals: %v", got)
	}
}

// FuzzParseEgress: what was read is read again as the same, and allows no more than it says.
func FuzzParseEgress(f *testing.F) {
	for _, s := range []string{"none", "all:1-2", "example.test:443,*.a.test", "10.0.0.0/8:5432", "[2001:db8::/32]:443", "::1", "*.", "[a]:1", "a:b:c", "1.2.3.4:"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		e, err := ParseEgress([]string{text})
		if err != nil {
			if e != nil || !errors.Is(err, ErrEgress) {
				t.Fatalf("%v, %v", e, err)
			}
			return
		}
		again, err := ParseEgress(e.Rules())
		if err != nil || !slices.Equal(again.Rules(), e.Rules()) {
			t.Fatalf("%q became %q, and then %q, %v", text, e.Rules(), again.Rules(), err)
		}
		for i, r := range e.rules {
			if r.text != again.rules[i].text || r != again.rules[i] {
				t.Fatalf("%+v became %+v", r, again.rules[i])
			}
			if r.first == 0 || r.last < r.first {
				t.Fatalf("ports of %+v", r)
			}
			if kinds := []bool{r.all, r.name != "", r.prefix.IsValid()}; slices.Index(kinds, true) < 0 ||
				slices.Contains(kinds[slices.Index(kinds, true)+1:], true) {
				t.Fatalf("%+v is not of one kind", r)
			}
		}
		if !strings.Contains(strings.ToLower(text), "all") && e.MayReach(netip.MustParseAddr("5.5.5.5"), 0, PlacePublic) && !strings.ContainsAny(text, "0123456789") {
			t.Fatalf("%q allows an address that it doesn't name", text)
		}
	})
}
