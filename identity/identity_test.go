// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
)

var update = flag.Bool("update", false, "write testdata/vectors.json anew")

func seed(b byte) (s [KeySize]byte) {
	for i := range s {
		s[i] = b
	}
	return s
}

type fixture struct {
	authority   AuthorityKey
	alice, bob  AgentKey
	join        JoinKey
	tunnel      TunnelKey
	now         time.Time
	certificate Certificate
	statement   TunnelStatement
	record      Record
	carried     Record // with a carrier
	plain       []byte // a record of four fields, from before there were relays
	signal      Signal
	consent     Consent
	toJoin      Consent
	withdrawn   Consent
	acceptance  Acceptance
	revocation  Revocation
	relay       RelayStatement
	pass        RelayPass
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newFixture() fixture {
	f := fixture{
		authority: AuthorityKeyFromSeed(seed(1)), alice: AgentKeyFromSeed(seed(2)), bob: AgentKeyFromSeed(seed(3)),
		join: JoinKeyFromSeed(seed(4)), tunnel: must(TunnelKeyFromBytes(seed(5))), now: time.Unix(1790000000, 0).UTC(),
	}
	network := f.authority.Public()
	f.certificate = must(Certificate{
		Agent: f.alice.Public(), Name: "planner", Tags: []string{"prod", "admin", "prod"}, Jurisdiction: "eu-de",
		NotBefore: f.now, NotAfter: f.now.Add(24 * time.Hour), Serial: 7,
	}.Sign(f.authority))
	f.statement = must(TunnelStatement{
		Network: network, Tunnel: f.tunnel.Public(), Suites: SuiteChaCha | SuiteAES,
		NotBefore: f.now, NotAfter: f.now.Add(24 * time.Hour),
	}.Sign(f.alice))
	f.record = must(Record{Network: network, Serial: 1790000000123, Endpoints: []netip.AddrPort{
		netip.MustParseAddrPort("192.0.2.10:7745"), netip.MustParseAddrPort("[2001:db8::1]:7745"),
	}, Relays: []AgentPublic{AgentKeyFromSeed(seed(6)).Public(), AgentKeyFromSeed(seed(7)).Public()}}.Sign(f.alice))
	f.carried = must(Record{
		Network: network, Serial: 1790000000124, Endpoints: f.record.Endpoints, Relays: f.record.Relays, Carrier: f.bob.Public(),
	}.Sign(f.alice))
	f.plain = must(seal(recordDomain, MaxRecord, f.alice.Signer(), plainRecordBody{
		Network: network, Agent: f.alice.Public(), Serial: 1790000000122, Endpoints: packEndpoints(f.record.Endpoints),
	}))
	f.signal = must(Signal{
		Network: network, To: f.bob.Public(), Serial: 1790000000321, Endpoints: f.record.Endpoints, Relays: f.record.Relays[:1],
	}.Sign(f.alice))
	f.consent = must(Consent{
		Network: network, To: f.bob.Public(), Reason: "quarterly audit", Serial: 1790000000456,
		Ports: []PortRange{{6, 443, 443}, {0, 8000, 8999}}, Expiry: f.now.Add(time.Hour),
	}.Sign(f.alice))
	f.toJoin = must(Consent{Network: network, To: f.join.Public(), ToJoin: true, Serial: 1}.Sign(f.alice))
	f.withdrawn = must(Consent{Network: network, To: f.bob.Public(), Serial: 1790000000789, Withdrawn: true}.Sign(f.alice))
	f.acceptance = must(Acceptance{Network: network, Agent: f.bob.Public()}.Sign(f.join))
	f.revocation = must(Revocation{Agent: f.bob.Public(), Serial: 9, Time: f.now, Reason: "left"}.Sign(f.authority))
	f.relay = must(RelayStatement{
		Key: f.bob.Public(), Name: "eu-1", Region: "eu", Jurisdiction: "eu-de", Addresses: []string{"192.0.2.10:7745", "r.example.org:443"},
		UDP: 7745, NotBefore: f.now, NotAfter: f.now.Add(24 * time.Hour), Serial: 1790000000321,
	}.Sign(f.authority))
	f.pass = must(RelayPass{Agent: f.alice.Public(), NotBefore: f.now, NotAfter: f.now.Add(24 * time.Hour), Serial: 7}.Sign(f.authority))
	return f
}

// statements lists every kind of statement with the decoder of its kind.
func (f fixture) statements() map[string]struct {
	raw  []byte
	open func([]byte, AuthorityPublic) error
} {
	type entry = struct {
		raw  []byte
		open func([]byte, AuthorityPublic) error
	}
	certificate := func(b []byte, n AuthorityPublic) error { _, err := OpenCertificate(b, n); return err }
	statement := func(b []byte, n AuthorityPublic) error { _, err := OpenTunnelStatement(b, n); return err }
	record := func(b []byte, n AuthorityPublic) error { _, err := OpenRecord(b, n); return err }
	signal := func(b []byte, n AuthorityPublic) error { _, err := OpenSignal(b, n); return err }
	consent := func(b []byte, n AuthorityPublic) error { _, err := OpenConsent(b, n); return err }
	acceptance := func(b []byte, n AuthorityPublic) error { _, err := OpenAcceptance(b, n); return err }
	revocation := func(b []byte, n AuthorityPublic) error { _, err := OpenRevocation(b, n); return err }
	relay := func(b []byte, n AuthorityPublic) error { _, err := OpenRelayStatement(b, n); return err }
	pass := func(b []byte, n AuthorityPublic) error { _, err := OpenRelayPass(b, n); return err }
	return map[string]entry{
		"certificate":       {f.certificate.Raw(), certificate},
		"tunnel":            {f.statement.Raw(), statement},
		"record":            {f.record.Raw(), record},
		"record-carried":    {f.carried.Raw(), record},
		"record-plain":      {f.plain, record},
		"signal":            {f.signal.Raw(), signal},
		"consent":           {f.consent.Raw(), consent},
		"consent-to-join":   {f.toJoin.Raw(), consent},
		"consent-withdrawn": {f.withdrawn.Raw(), consent},
		"acceptance":        {f.acceptance.Raw(), acceptance},
		"revocation":        {f.revocation.Raw(), revocation},
		"relay":             {f.relay.Raw(), relay},
		"pass":              {f.pass.Raw(), pass},
	}
}

// TestVectors compares keys, addresses and statements with a file that a second implementation can use.
func TestVectors(t *testing.T) {
	f := newFixture()
	network := f.authority.Public()
	got := map[string]string{
		"authority-seed": hex.EncodeToString(bytes.Repeat([]byte{1}, 32)),
		"agent-seed":     hex.EncodeToString(bytes.Repeat([]byte{2}, 32)),
		"peer-seed":      hex.EncodeToString(bytes.Repeat([]byte{3}, 32)),
		"join-seed":      hex.EncodeToString(bytes.Repeat([]byte{4}, 32)),
		"tunnel-secret":  hex.EncodeToString(bytes.Repeat([]byte{5}, 32)),
		"authority":      network.String(),
		"agent":          f.alice.Public().String(),
		"peer":           f.bob.Public().String(),
		"join":           f.join.Public().String(),
		"tunnel-key":     f.tunnel.Public().String(),
		"prefix":         NetworkPrefix(network).String(),
		"service":        ServiceAddress(NetworkPrefix(network)).String(),
		"agent-address":  Address(network, f.alice.Public()).String(),
		"relay-id":       fmt.Sprintf("%08x", RelayID(f.bob.Public())),
		"peer-address":   Address(network, f.bob.Public()).String(),
		"invite": must(Invite{
			NetworkName: "pilot", Authority: network, Coordinators: []string{"192.0.2.10:7745"}, Key: f.join,
			Expires: f.now, Consent: f.toJoin.Raw(),
		}.Text()),
	}
	for name, s := range f.statements() {
		got["statement-"+name] = hex.EncodeToString(s.raw)
	}
	file := filepath.Join("testdata", "vectors.json")
	text := append(must(json.MarshalIndent(got, "", "  ")), '\n')
	if *update {
		if err := os.WriteFile(file, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(text, want) {
		t.Errorf("the vectors changed; they are a promise to other implementations\ngot:\n%s", text)
	}
}

func TestOpenRoundTrip(t *testing.T) {
	f := newFixture()
	network := f.authority.Public()
	if c := must(OpenCertificate(f.certificate.Raw(), network)); c.Name != "planner" || c.Serial != 7 ||
		!slices.Equal(c.Tags, []string{"admin", "prod"}) || c.Jurisdiction != "eu-de" || !c.HasTag("admin") || c.HasTag("x") ||
		c.Address() != Address(network, f.alice.Public()) || !c.NotAfter.Equal(f.now.Add(24*time.Hour)) {
		t.Errorf("certificate came back as %+v", c)
	}
	if r := must(OpenRecord(f.record.Raw(), network)); !slices.Equal(r.Endpoints, f.record.Endpoints) ||
		r.Endpoints[0] != netip.MustParseAddrPort("192.0.2.10:7745") || !slices.Equal(r.Relays, f.record.Relays) ||
		r.Relays[0] != AgentKeyFromSeed(seed(6)).Public() || !r.Carrier.IsZero() {
		t.Errorf("record came back as %+v", r)
	}
	if r := must(OpenRecord(f.carried.Raw(), network)); !slices.Equal(r.Endpoints, f.record.Endpoints) ||
		!slices.Equal(r.Relays, f.record.Relays) || r.Agent != f.alice.Public() || r.Carrier != f.bob.Public() {
		t.Errorf("record with a carrier came back as %+v", r)
	}
	if r := must(OpenRecord(f.plain, network)); !slices.Equal(r.Endpoints, f.record.Endpoints) || len(r.Relays) != 0 ||
		r.Serial != 1790000000122 || r.Agent != f.alice.Public() {
		t.Errorf("record without relays came back as %+v", r)
	}
	if s := must(OpenSignal(f.signal.Raw(), network)); s.From != f.alice.Public() || s.To != f.bob.Public() || s.Serial != 1790000000321 ||
		!slices.Equal(s.Endpoints, f.record.Endpoints) || !slices.Equal(s.Relays, f.record.Relays[:1]) {
		t.Errorf("signal came back as %+v", s)
	}
	if c := must(OpenConsent(f.consent.Raw(), network)); c.From != f.alice.Public() || c.To != f.bob.Public() ||
		len(c.Ports) != 2 || c.Ports[1] != (PortRange{0, 8000, 8999}) || c.Reason != "quarterly audit" {
		t.Errorf("consent came back as %+v", c)
	}
	if s := must(OpenTunnelStatement(f.statement.Raw(), network)); s.Tunnel != f.tunnel.Public() || s.Agent != f.alice.Public() {
		t.Errorf("statement came back as %+v", s)
	}
	if r := must(OpenRevocation(f.revocation.Raw(), network)); r.Serial != 9 || r.Reason != "left" || !r.Time.Equal(f.now) {
		t.Errorf("revocation came back as %+v", r)
	}
	if r := must(OpenRelayStatement(f.relay.Raw(), network)); r.Key != f.bob.Public() || r.Name != "eu-1" || r.Region != "eu" ||
		r.Jurisdiction != "eu-de" || r.UDP != 7745 || !slices.Equal(r.Addresses, f.relay.Addresses) || r.Serial != 1790000000321 ||
		r.ID() != RelayID(f.bob.Public()) || r.ValidAt(f.now) != nil || !errors.Is(r.ValidAt(f.now.Add(24*time.Hour)), ErrExpired) {
		t.Errorf("relay came back as %+v", r)
	}
	if p := must(OpenRelayPass(f.pass.Raw(), network)); p.Network != network || p.Agent != f.alice.Public() || p.Serial != 7 ||
		p.ValidAt(f.now) != nil || !errors.Is(p.ValidAt(f.now.Add(24*time.Hour)), ErrExpired) ||
		!errors.Is(p.ValidAt(f.now.Add(-time.Second)), ErrNotYetValid) || bytes.Contains(p.Raw(), []byte(f.certificate.Name)) {
		t.Errorf("pass came back as %+v", p)
	}
}

// TestCorruption flips every bit of each statement, and cuts it at every length: nothing changed is accepted.
func TestCorruption(t *testing.T) {
	f := newFixture()
	for name, s := range f.statements() {
		if err := s.open(s.raw, f.authority.Public()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for i := range s.raw {
			for bit := range 8 {
				bad := slices.Clone(s.raw)
				bad[i] ^= 1 << bit
				if s.open(bad, f.authority.Public()) == nil {
					t.Fatalf("%s: accepted with bit %d of byte %d flipped", name, bit, i)
				}
			}
			if s.open(s.raw[:i], f.authority.Public()) == nil {
				t.Fatalf("%s: accepted when cut at %d", name, i)
			}
		}
		if s.open(append(slices.Clone(s.raw), 0), f.authority.Public()) == nil {
			t.Fatalf("%s: accepted with a byte behind it", name)
		}
	}
}

// TestKindsApart opens each statement with the decoders of all other kinds, and in another network.
func TestKindsApart(t *testing.T) {
	f := newFixture()
	all := f.statements()
	other := AuthorityKeyFromSeed(seed(9)).Public()
	for name, s := range all {
		for kind, k := range all {
			if base, _, _ := strings.Cut(name, "-"); base == kind || strings.HasPrefix(kind, base+"-") {
				continue
			}
			if k.open(s.raw, f.authority.Public()) == nil {
				t.Errorf("a %s passed for a %s", name, kind)
			}
		}
		if err := s.open(s.raw, other); !errors.Is(err, ErrNetwork) {
			t.Errorf("%s in another network: %v", name, err)
		}
	}
}

// TestDomainsApart: a body signed for one purpose can't be replayed for another with equal fields.
func TestDomainsApart(t *testing.T) {
	f := newFixture()
	body := acceptanceBody{Network: f.authority.Public(), Join: f.join.Public(), Agent: f.bob.Public()}
	raw := must(seal("pilot something else v1", MaxAcceptance, f.join.Signer(), body))
	if _, err := OpenAcceptance(raw, f.authority.Public()); !errors.Is(err, ErrSignature) {
		t.Errorf("got %v", err)
	}
}

// TestAbuse20MalleableEncodings: other encodings of the same certificate (longer integers, indefinite lengths, a
// signature with another S) are refused, so that a revoked one can't come back in new clothes; what counts for
// revocation is the serial inside, not the bytes.
func TestAbuse20MalleableEncodings(t *testing.T) {
	f := newFixture()
	raw := f.certificate.Raw()
	var e envelope
	if err := cbor.Unmarshal(raw, &e); err != nil {
		t.Fatal(err)
	}
	long := func(b []byte) []byte { // a byte string with a four-byte length
		return append([]byte{0x5a, byte(len(b) >> 24), byte(len(b) >> 16), byte(len(b) >> 8), byte(len(b))}, b...)
	}
	highS := slices.Clone(e.Signature)
	order, carry := must(hex.DecodeString("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010")), 0
	for i := range order { // S + L verifies too where a verifier forgets RFC 8032, section 5.1.7
		sum := int(highS[32+i]) + int(order[i]) + carry
		highS[32+i], carry = byte(sum), sum>>8
	}
	for name, bad := range map[string][]byte{
		"long lengths":       append(append([]byte{0x82}, long(e.Body)...), long(e.Signature)...),
		"indefinite array":   append(append([]byte{0x9f}, raw[1:]...), 0xff),
		"tagged":             append([]byte{0xd9, 0xd9, 0xf7}, raw...),
		"signature S plus L": must(cbor.Marshal([]any{e.Body, highS})),
		"a third element":    must(cbor.Marshal([]any{e.Body, e.Signature, 1})),
		"map":                must(cbor.Marshal(map[string]any{"Body": e.Body, "Signature": e.Signature})),
	} {
		if c, err := OpenCertificate(bad, f.authority.Public()); err == nil {
			t.Errorf("%s: accepted as %+v", name, c)
		}
	}
}

// TestNullIsNoList: a signed null where a list or bytes belong is refused like every other second encoding.
func TestNullIsNoList(t *testing.T) {
	f := newFixture()
	network := f.authority.Public()
	n := [KeySize]byte(network)
	agent := [KeySize]byte(f.alice.Public())
	for name, c := range map[string]struct {
		domain string
		key    JoinKey
		body   []any
		open   func([]byte) error
	}{
		"certificate tags": {certificateDomain, JoinKey(f.authority), []any{n[:], agent[:], "planner", nil, "", 1, 2, 3},
			func(b []byte) error { _, err := OpenCertificate(b, network); return err }},
		"relay addresses": {relayDomain, JoinKey(f.authority), []any{n[:], agent[:], "eu-1", "", "", nil, 1, 1, 2, 3},
			func(b []byte) error { _, err := OpenRelayStatement(b, network); return err }},
		"record endpoints": {recordDomain, JoinKey(f.alice), []any{n[:], agent[:], 1, nil, []any{}},
			func(b []byte) error { _, err := OpenRecord(b, network); return err }},
		"endpoints of a record without relays": {recordDomain, JoinKey(f.alice), []any{n[:], agent[:], 1, nil},
			func(b []byte) error { _, err := OpenRecord(b, network); return err }},
		"record relays": {recordDomain, JoinKey(f.alice), []any{n[:], agent[:], 1, []any{}, nil},
			func(b []byte) error { _, err := OpenRecord(b, network); return err }},
		"a relay": {recordDomain, JoinKey(f.alice), []any{n[:], agent[:], 1, []any{}, []any{nil}},
			func(b []byte) error { _, err := OpenRecord(b, network); return err }},
		"signal relays": {signalDomain, JoinKey(f.alice), []any{n[:], agent[:], n[:], 1, []any{}, nil},
			func(b []byte) error { _, err := OpenSignal(b, network); return err }},
	} {
		if err := c.open(must(seal(c.domain, 4096, c.key.Signer(), c.body))); !errors.Is(err, ErrEncoding) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestAbuse19SharedPrefix: addresses that agree in all but the last bit are different agents.
func TestAbuse19SharedPrefix(t *testing.T) {
	network := AuthorityKeyFromSeed(seed(1)).Public()
	best, seen := 0, map[[2]byte]AgentPublic{}
	var pair [2]AgentPublic
	for i := range 4096 { // grind: keys whose addresses share their first bits are cheap to find
		var p AgentPublic
		p[0], p[1] = byte(i), byte(i>>8)
		a := Address(network, p).As16()
		key := [2]byte{a[6], a[7]}
		if other, ok := seen[key]; ok {
			best, pair = best+1, [2]AgentPublic{other, p}
		}
		seen[key] = p
	}
	if best == 0 {
		t.Fatal("no two keys share 16 bits; the test needs a pair")
	}
	if Address(network, pair[0]) == Address(network, pair[1]) || pair[0] == pair[1] {
		t.Errorf("%v and %v have one address", pair[0], pair[1])
	}
}

// TestAbuse18Names: nothing that could end a string, a line or a label, or pass for another, is a name.
func TestAbuse18Names(t *testing.T) {
	for _, good := range []string{"planner", "a", "agent-7", "7up", strings.Repeat("a", 63), "x-1-y"} {
		if err := ValidateName(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{
		"", strings.Repeat("a", 64), "Planner", "pl anner", "planner\n", "pl\"anner", "pl'anner", "planner.", "a.b", "-a", "a-",
		"plаnner" /* Cyrillic а */, "xn--plnner-9qf", "\x1b[31mred", "../etc", "a/b", "a\x00b", "localhost", "pilot", "1234",
		"naïve", "ﬀ", "a_b", "$(id)", "`id`", "%s", "\u202eabc", "a\u200bb",
	} {
		if err := ValidateName(bad); !errors.Is(err, ErrName) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	f := newFixture()
	for _, reason := range []string{"a\nb", "\x1b[2J", "\u202eevil", strings.Repeat("x", 201), "\xff"} {
		c := Consent{Network: f.authority.Public(), To: f.bob.Public(), Reason: reason}
		if _, err := c.Sign(f.alice); !errors.Is(err, ErrField) {
			t.Errorf("reason %q: %v", reason, err)
		}
	}
}

func TestFieldRanges(t *testing.T) {
	f := newFixture()
	network := f.authority.Public()
	day := 24 * time.Hour
	for name, sign := range map[string]func() error{
		"certificate that ends before it begins": func() error {
			_, err := Certificate{Agent: f.bob.Public(), Name: "x", NotBefore: f.now, NotAfter: f.now.Add(-day)}.Sign(f.authority)
			return err
		},
		"pass that ends before it begins": func() error {
			_, err := RelayPass{Agent: f.bob.Public(), NotBefore: f.now, NotAfter: f.now.Add(-day)}.Sign(f.authority)
			return err
		},
		"too many tags": func() error {
			var tags []string
			for i := range maxTags + 1 {
				tags = append(tags, fmt.Sprintf("t%d", i))
			}
			_, err := Certificate{Agent: f.bob.Public(), Name: "x", Tags: tags, NotAfter: f.now}.Sign(f.authority)
			return err
		},
		"consent to oneself": func() error {
			_, err := Consent{Network: network, To: f.alice.Public()}.Sign(f.alice)
			return err
		},
		"relay without an address": func() error {
			_, err := RelayStatement{Key: f.bob.Public(), Name: "eu-1", NotAfter: f.now}.Sign(f.authority)
			return err
		},
		"relay without a key": func() error {
			_, err := RelayStatement{Name: "eu-1", Addresses: []string{"a:1"}, NotAfter: f.now}.Sign(f.authority)
			return err
		},
		"relay in a region of two lines": func() error {
			_, err := RelayStatement{Key: f.bob.Public(), Name: "eu-1", Region: "e\nu", Addresses: []string{"a:1"}, NotAfter: f.now}.Sign(f.authority)
			return err
		},
		"ports the wrong way round": func() error {
			_, err := Consent{Network: network, To: f.bob.Public(), Ports: []PortRange{{6, 20, 10}}}.Sign(f.alice)
			return err
		},
		"endpoint without a port": func() error {
			_, err := Record{Network: network, Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:0")}}.Sign(f.alice)
			return err
		},
		"five relays": func() error {
			_, err := Record{Network: network, Relays: []AgentPublic{{1}, {2}, {3}, {4}, {5}}}.Sign(f.alice)
			return err
		},
		"an agent that carries itself": func() error {
			_, err := Record{Network: network, Carrier: f.alice.Public()}.Sign(f.alice)
			return err
		},
		"a record with no carrier in the form of one with": func() error {
			_, err := OpenRecord(must(seal(recordDomain, MaxRecord, f.alice.Signer(), carriedRecordBody{
				Network: network, Agent: f.alice.Public(), Endpoints: [][]byte{}, Relays: [][KeySize]byte{},
			})), network)
			return err
		},
		"a relay twice": func() error {
			_, err := Record{Network: network, Relays: []AgentPublic{{1}, {2}, {1}}}.Sign(f.alice)
			return err
		},
		"a relay without a key": func() error {
			_, err := Signal{Network: network, To: f.bob.Public(), Relays: []AgentPublic{{}}}.Sign(f.alice)
			return err
		},
		"signal to oneself": func() error {
			_, err := Signal{Network: network, To: f.alice.Public()}.Sign(f.alice)
			return err
		},
		"signal from everywhere": func() error {
			_, err := Signal{Network: network, To: f.bob.Public(), Endpoints: make([]netip.AddrPort, 33)}.Sign(f.alice)
			return err
		},
		"no suite": func() error {
			_, err := TunnelStatement{Network: network, Tunnel: f.tunnel.Public(), NotAfter: f.now}.Sign(f.alice)
			return err
		},
	} {
		if err := sign(); !errors.Is(err, ErrField) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The largest certificate that the limits allow still fits.
	var tags []string
	for i := range maxTags {
		tags = append(tags, fmt.Sprintf("%s%02d", strings.Repeat("t", maxTag-2), i))
	}
	if _, err := (Certificate{
		Agent: f.bob.Public(), Name: strings.Repeat("n", 63), Tags: tags, Jurisdiction: strings.Repeat("j", 32),
		NotBefore: f.now, NotAfter: f.now.Add(day), Serial: 1 << 63,
	}).Sign(f.authority); err != nil {
		t.Errorf("largest certificate: %v", err)
	}
	if _, err := (RelayPass{Agent: f.bob.Public(), NotBefore: f.now, NotAfter: time.Unix(maxTime, 0), Serial: 1 << 63}).Sign(f.authority); err != nil {
		t.Errorf("largest pass: %v", err)
	}
	// So do the largest record and signal.
	var endpoints []netip.AddrPort
	for i := range maxEndpoints {
		endpoints = append(endpoints, netip.AddrPortFrom(netip.MustParseAddr("2001:db8::1"), uint16(1000+i)))
	}
	relays := []AgentPublic{{1}, {2}, {3}, {4}}
	if _, err := (Record{Network: network, Serial: 1 << 63, Endpoints: endpoints, Relays: relays, Carrier: f.bob.Public()}).Sign(f.alice); err != nil {
		t.Errorf("largest record: %v", err)
	}
	if _, err := (Signal{Network: network, To: f.bob.Public(), Serial: 1 << 63, Endpoints: endpoints, Relays: relays}).Sign(f.alice); err != nil {
		t.Errorf("largest signal: %v", err)
	}
}

func TestValidity(t *testing.T) {
	f := newFixture()
	c := f.certificate
	if err := c.ValidAt(f.now.Add(-time.Second)); !errors.Is(err, ErrNotYetValid) {
		t.Error(err)
	}
	if err := c.ValidAt(f.now); err != nil {
		t.Error(err)
	}
	if err := c.ValidAt(f.now.Add(24 * time.Hour)); !errors.Is(err, ErrExpired) {
		t.Error(err)
	}
	if !f.consent.ActiveAt(f.now) || f.consent.ActiveAt(f.now.Add(time.Hour)) || f.withdrawn.ActiveAt(f.now) || !f.toJoin.ActiveAt(f.now) {
		t.Error("ActiveAt")
	}
	if !f.toJoin.Reaches(f.bob.Public(), f.acceptance) || f.toJoin.Reaches(f.alice.Public(), f.acceptance) ||
		f.toJoin.Reaches(f.bob.Public(), Acceptance{}) || !f.consent.Reaches(f.bob.Public(), Acceptance{}) {
		t.Error("Reaches")
	}
}

func TestKeyText(t *testing.T) {
	f := newFixture()
	if p := must(ParseAgentPublic(f.alice.Public().String())); p != f.alice.Public() {
		t.Error("round trip")
	}
	// A key of one type is not read as another.
	if _, err := ParseAgentPublic(f.authority.Public().String()); !errors.Is(err, ErrKey) {
		t.Error(err)
	}
	if _, err := ParseAgentPublic(f.alice.Public().String() + "A"); !errors.Is(err, ErrKey) {
		t.Error(err)
	}
	for _, k := range []any{f.alice, f.authority, f.join, f.tunnel, &f.alice} {
		for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
			if s := fmt.Sprintf(format, k); !strings.Contains(s, redacted) || len(s) > 60 {
				t.Errorf("%s of a %T prints %q", format, k, s)
			}
		}
		if b := must(json.Marshal(k)); string(b) != `"`+redacted+`"` {
			t.Errorf("JSON of a %T is %s", k, b)
		}
	}
}

func TestInvite(t *testing.T) {
	f := newFixture()
	in := Invite{
		NetworkName: "pilot", Authority: f.authority.Public(), Coordinators: []string{"192.0.2.10:7745", "[2001:db8::1]:443", "c.example.org:7745"},
		Key: f.join, Expires: f.now, Consent: f.toJoin.Raw(),
	}
	text := must(in.Text())
	out := must(ParseInvite(" " + text + "\n"))
	if out.Authority != in.Authority || out.Key.Public() != f.join.Public() || !slices.Equal(out.Coordinators, in.Coordinators) ||
		!out.Expires.Equal(f.now) || !bytes.Equal(out.Consent, in.Consent) {
		t.Errorf("came back as %+v", out)
	}
	for i := range len(text) - 1 {
		if _, err := ParseInvite(text[:i+1]); i < len(text)-2 && err == nil {
			t.Fatalf("accepted when cut at %d", i+1)
		}
	}
	for _, bad := range [][]string{nil, {"host"}, {"host:0"}, {"ho st:1"}, {"a:1\x1b"}, {":1"}} {
		in.Coordinators = bad
		if _, err := in.Text(); !errors.Is(err, ErrField) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if s := fmt.Sprintf("%v %+v %#v", out, out, out); strings.Contains(s, "pilot://") || len(s) > 100 {
		t.Errorf("prints %q", s)
	}
}

func TestAddresses(t *testing.T) {
	network := AuthorityKeyFromSeed(seed(1)).Public()
	p := NetworkPrefix(network)
	if p.Bits() != 48 || p.Addr().As16()[0] != 0xfd || !Reserved(p, ServiceAddress(p)) || !p.Contains(ServiceAddress(p)) {
		t.Errorf("prefix %s, service %s", p, ServiceAddress(p))
	}
	if Reserved(p, Address(network, AgentPublic{1})) || Reserved(p, netip.MustParseAddr("::53")) {
		t.Error("Reserved")
	}
}

func FuzzStatements(f *testing.F) {
	x := newFixture()
	for _, s := range x.statements() {
		f.Add(s.raw)
	}
	f.Add([]byte{0x82, 0x40, 0x40})
	all := x.statements()
	f.Fuzz(func(t *testing.T, raw []byte) {
		for name, s := range all {
			if s.open(raw, x.authority.Public()) != nil {
				continue
			}
			// What is accepted was signed by the fixture: nobody else has its keys.
			kind, _, _ := strings.Cut(name, "-")
			if !slices.ContainsFunc(slices.Collect(maps.Keys(all)), func(n string) bool {
				return strings.HasPrefix(n, kind) && bytes.Equal(raw, all[n].raw)
			}) {
				t.Fatalf("a forged %s was accepted: %x", name, raw)
			}
		}
	})
}

func FuzzInvite(f *testing.F) {
	x := newFixture()
	f.Add(must(Invite{NetworkName: "pilot", Authority: x.authority.Public(), Coordinators: []string{"a:1"}, Key: x.join}.Text()))
	f.Add("pilot://")
	f.Fuzz(func(t *testing.T, s string) {
		in, err := ParseInvite(s)
		if err != nil {
			return
		}
		text, err := in.Text()
		if err != nil || text != strings.TrimSpace(s) {
			t.Fatalf("%q was accepted and is written as %q (%v)", s, text, err)
		}
	})
}

func FuzzName(f *testing.F) {
	f.Add("planner")
	f.Add("xn--a")
	f.Fuzz(func(t *testing.T, s string) {
		if ValidateName(s) == nil && (strings.ToLower(s) != s || strings.ContainsAny(s, " ./\\\"'\x00\n\x1b") || len(s) > 63) {
			t.Fatalf("%q accepted", s)
		}
	})
}
