// SPDX-License-Identifier: Apache-2.0

package stun

import (
	"context"
	"encoding/hex"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/stun/v3"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	serverA  = netip.MustParseAddrPort("192.0.2.1:3478")
	serverA2 = netip.MustParseAddrPort("192.0.2.1:3479")
	serverB  = netip.MustParseAddrPort("198.51.100.1:3478")
	outside  = netip.MustParseAddrPort("203.0.113.5:40000")
	outside2 = netip.MustParseAddrPort("203.0.113.5:40001")
	inside   = netip.MustParseAddrPort("10.0.0.5:7745")
)

func TestMapping(t *testing.T) {
	for name, tt := range map[string]struct {
		seen []Observation
		want Behaviour
	}{
		"nobody answers":              {nil, Unknown},
		"one server":                  {[]Observation{{serverA, outside}}, Unknown},
		"one server twice":            {[]Observation{{serverA, outside}, {serverA, outside}}, Unknown},
		"one server, no NAT":          {[]Observation{{serverA, inside}}, None},
		"two, no NAT":                 {[]Observation{{serverA, inside}, {serverB, inside}}, None},
		"two ports, the same":         {[]Observation{{serverA, outside}, {serverA2, outside}}, EndpointIndependent},
		"two addresses, the same":     {[]Observation{{serverA, outside}, {serverB, outside}}, EndpointIndependent},
		"two ports, others":           {[]Observation{{serverA, outside}, {serverA2, outside2}}, AddressAndPortDependent},
		"two addresses, others":       {[]Observation{{serverA, outside}, {serverB, outside2}}, AddressAndPortDependent},
		"others by address alone":     {[]Observation{{serverA, outside}, {serverA2, outside}, {serverB, outside2}}, AddressDependent},
		"others by address and port":  {[]Observation{{serverA, outside}, {serverA2, outside2}, {serverB, outside}}, AddressAndPortDependent},
		"all three the same":          {[]Observation{{serverA, outside}, {serverA2, outside}, {serverB, outside}}, EndpointIndependent},
		"a pool of outside addresses": {[]Observation{{serverA, outside}, {serverB, netip.MustParseAddrPort("203.0.113.6:40000")}}, AddressAndPortDependent},
	} {
		if got := Mapping([]netip.AddrPort{inside}, tt.seen); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

func TestFiltering(t *testing.T) {
	for _, tt := range []struct {
		tried, came bool
		mapping     Behaviour
		want        Behaviour
	}{
		{false, false, None, Unknown},
		{true, false, None, AddressAndPortDependent},
		{true, true, None, None},
		{true, true, EndpointIndependent, AddressDependent},
		{true, false, EndpointIndependent, AddressAndPortDependent},
	} {
		if got := Filtering(tt.tried, tt.came, tt.mapping); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}

func TestWords(t *testing.T) {
	for b := Unknown; b <= AddressAndPortDependent; b++ {
		text, err := b.MarshalText()
		var back Behaviour
		if err != nil || back.UnmarshalText(text) != nil || back != b {
			t.Errorf("%d: %s, %v", b, text, back)
		}
	}
	if Behaviour(99).String() != "unknown" || !AddressDependent.Hard() || EndpointIndependent.Hard() {
		t.Error("words")
	}
}

// server answers requests as RFC 8489 says, after a delay, when tell allows it.
type server struct {
	t       *testing.T
	client  *Client
	delay   time.Duration
	lose    int // requests
	from    netip.AddrPort
	other   netip.AddrPort
	request []int // sizes
}

func (s *server) send(to netip.AddrPort, d []byte) error {
	m := &stun.Message{Raw: append([]byte(nil), d...)}
	if err := m.Decode(); err != nil || m.Type != stun.BindingRequest || !Is(d) {
		s.t.Errorf("request %x: %v", d, err)
	}
	s.request = append(s.request, len(d))
	if s.lose > 0 {
		s.lose--
		return nil
	}
	set := []stun.Setter{
		stun.NewTransactionIDSetter(m.TransactionID), stun.BindingSuccess,
		&stun.XORMappedAddress{IP: outside.Addr().AsSlice(), Port: int(outside.Port())},
	}
	if s.other.IsValid() {
		set = append(set, &stun.OtherAddress{IP: s.other.Addr().AsSlice(), Port: int(s.other.Port())})
	}
	answer := stun.MustBuild(set...)
	if len(answer.Raw) > len(d) {
		s.t.Errorf("the answer has %d bytes, the request %d", len(answer.Raw), len(d))
	}
	from := to
	if s.from.IsValid() {
		from = s.from
	}
	if m.Contains(attrChangeRequest) {
		from = serverA2
	}
	time.AfterFunc(s.delay, func() { s.client.Accept(answer.Raw, from) })
	return nil
}

func newServer(t *testing.T) *server {
	s := &server{t: t, delay: 20 * time.Millisecond}
	s.client = NewClient(s.send)
	return s
}

func TestAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		s.other, s.lose = serverA2, 2
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		began := time.Now()
		r, err := s.client.Ask(ctx, serverA)
		want := Reply{Server: serverA, From: serverA, Mapped: outside, OtherPort: serverA2.Port(), RTT: 20 * time.Millisecond}
		if err != nil || r != want {
			t.Errorf("%+v, %v", r, err)
		}
		if took := time.Since(began); took != 520*time.Millisecond || len(s.request) != 3 {
			t.Errorf("%v, %d requests", took, len(s.request))
		}
		r, err = s.client.AskOtherPort(ctx, serverA)
		if err != nil || r.From != serverA2 {
			t.Errorf("%+v, %v", r, err)
		}
		if len(s.client.waiting) != 0 {
			t.Errorf("%d transactions are left", len(s.client.waiting))
		}
	})
}

func TestAnswersFromElsewhereDoNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, from := range []netip.AddrPort{serverB, serverA2} {
			s := newServer(t)
			s.from = from
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			if r, err := s.client.Ask(ctx, serverA); !errors.Is(err, ErrNoAnswer) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%+v, %v", r, err)
			}
			cancel()
			time.Sleep(time.Second) // late ones
			if len(s.client.waiting) != 0 {
				t.Errorf("%d transactions are left", len(s.client.waiting))
			}
		}
	})
}

func TestLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c *Client
		back := true
		c = NewClient(func(to netip.AddrPort, d []byte) error {
			if back {
				time.AfterFunc(time.Millisecond, func() { c.Accept(d, inside) })
			}
			return nil
		})
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if !c.Loop(ctx, outside) {
			t.Error("it came back")
		}
		if _, err := c.Ask(ctx, outside); err == nil {
			t.Error("a request is no answer")
		}
		back = false
		ctx, cancel = context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if c.Loop(ctx, outside) {
			t.Error("nothing came back")
		}
	})
}

// FuzzParse begins with the sample answers of RFC 5769.
func FuzzParse(f *testing.F) {
	for _, sample := range []string{
		"0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000080001a147e112a643000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96",
		"010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d900080014a382954e4be67bf11784c97c8292c275bfe3ed4180280004c8fb0b4c",
	} {
		d, err := hex.DecodeString(sample)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(d)
	}
	m, err := request(true)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(m.Raw)
	f.Add(otherAddress(f, netip.IPv4Unspecified()))
	f.Add(otherAddress(f, netip.IPv6Unspecified()))
	f.Fuzz(func(t *testing.T, d []byte) {
		r, _, request, ok := parse(d)
		if ok && !request && (!r.Mapped.IsValid() || r.Mapped.Port() == 0 || r.Mapped.Addr().Is4In6()) {
			t.Errorf("%+v", r)
		}
		NewClient(nil).Accept(d, serverA)
	})
}

// otherAddress is an answer that names a second port at an address.
func otherAddress(t testing.TB, addr netip.Addr) []byte {
	t.Helper()
	m, err := stun.Build(stun.TransactionID, stun.BindingSuccess, &stun.XORMappedAddress{IP: outside.Addr().AsSlice(), Port: int(outside.Port())},
		&stun.OtherAddress{IP: addr.AsSlice(), Port: 3479})
	if err != nil {
		t.Fatal(err)
	}
	return m.Raw
}

// A server that does not know at which of its addresses it was asked names none with its second port.
func TestOfTheOtherAddressThePortCounts(t *testing.T) {
	for _, addr := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified(), netip.MustParseAddr("10.9.9.9")} {
		if r, _, _, ok := parse(otherAddress(t, addr)); !ok || r.OtherPort != 3479 || r.Mapped != outside {
			t.Errorf("%v: %+v, %v", addr, r, ok)
		}
	}
}

func TestSampleAnswers(t *testing.T) {
	d, _ := hex.DecodeString("0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000080001a147e112a643000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96")
	if r, _, request, ok := parse(d); !ok || request || r.Mapped != netip.MustParseAddrPort("192.0.2.1:32853") {
		t.Errorf("%+v, %v", r, ok)
	}
}
