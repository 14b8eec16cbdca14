// SPDX-License-Identifier: Apache-2.0

package bugreport

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/doctor"
	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/platform/inspect"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// forms are the ways in which somebody may have written a secret of 32 bytes.
func forms(key []byte) map[string]string {
	numbers := fmt.Sprint(key)
	spaced := fmt.Sprintf("% x", key)
	return map[string]string{
		"hex": hex.EncodeToString(key), "HEX": strings.ToUpper(hex.EncodeToString(key)), "base64": base64.StdEncoding.EncodeToString(key),
		"raw base64": base64.RawStdEncoding.EncodeToString(key), "base64url": base64.URLEncoding.EncodeToString(key),
		"raw base64url": base64.RawURLEncoding.EncodeToString(key), "URL-escaped": url.QueryEscape(base64.StdEncoding.EncodeToString(key)),
		"numbers": numbers, "JSON numbers": strings.ReplaceAll(numbers, " ", ", "), "spaced": spaced, "colons": strings.ReplaceAll(spaced, " ", ":"),
		"Go": fmt.Sprintf("%#v", key),
	}
}

func TestAbuse06KeysAreTakenOutInEachForm(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		key := make([]byte, 32)
		for i := range key {
			key[i] = byte(rng.Uint32())
		}
		for form, text := range forms(key) {
			for _, around := range []string{"%s", `{"msg":"x","error":"key %s is bad"}`, "seed=%s", "/path/%s/x", "a %s\n"} {
				got := string(Scrub(fmt.Appendf(nil, around, text)))
				if !strings.Contains(got, leftOut) || strings.Contains(got, text[:len(text)/2]) || strings.Contains(got, text[len(text)/2:]) {
					t.Errorf("%s in %q: %s", form, around, got)
				}
			}
		}
	}
}

func TestAbuse06OtherSecretsAreTakenOut(t *testing.T) {
	for _, text := range []string{
		"pilot://hwFlcGlsb3RYIA-HUNTER2-x", "http://user:HUNTER2@proxy.example:3128", `{"url":"socks5://HUNTER2@h:1"}`, "Proxy-Authorization: Basic HUNTER2xxxxx",
		"HTTPS_PROXY=http://u:HUNTER2@proxy", `"password":"HUNTER2"`, "token=HUNTER2", "Bearer HUNTER2HUNTER2", "api_key: HUNTER2",
		"-----BEGIN PRIVATE KEY-----\nHUNTER2\n-----END PRIVATE KEY-----", "https%3A%2F%2Fx pilot%3A%2F%2FHUNTER2HUNTER2",
	} {
		if got := string(Scrub([]byte(text))); strings.Contains(got, "HUNTER2") || !strings.Contains(got, leftOut) {
			t.Errorf("%q: %q", text, got)
		}
	}
	// What is no secret stays: a report without it would be of no use.
	for _, text := range []string{
		identity.AgentPublic{1, 2, 3}.String(), "fd5c:1d2:93a0:aaaa:bbbb:cccc:dddd:eeee", "/usr/lib/go/src/internal/something/very/long/path/to/a/file.go:123",
		"0123456789abcdef0123456789abcdef01234567", "2026-03-01T12:00:00.000000000Z", "https://coord.example:7745/v1/agents", "02:42:ac:11:00:02",
		`"pilot_peer_receive_bytes_total{peer=\"warehouse\"} 12"`, "golang.org/x/sync/errgroup.(*Group).Go.func1+0x3a",
	} {
		if got := string(Scrub([]byte(text))); got != text {
			t.Errorf("%q: %q", text, got)
		}
	}
}

func TestLogLinesKeepWhatIsAllowed(t *testing.T) {
	for in, want := range map[string]string{
		`{"time":"t","level":"INFO","msg":"m","error":"e","agent":"a"}`: `{"time":"t","level":"INFO","msg":"m","error":"e","agent":"a"}`,
		`{"msg":"m","surprise":"x","n":7}`:                              `{"msg":"m","surprise":"(left out)","n":"(left out)"}`,
		`{"msg":"m","agent":{"deep":1},"count":7}`:                      `{"msg":"m","agent":"(left out)","count":7}`,
		"\tmain.f(0x1, {0xc000123, 0x20, 0x20}, 0x3?)":                  "\tmain.f(…)",
		"created by main.(*T).run(...)":                                 "created by main.(*T).run(…)",
		`{"msg":"m"} trailing`:                                          `{"msg":"m"} trailing`,
	} {
		if got := string(logLines([]string{in + "\n"})); got != want+"\n" {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// open reads an archive.
func open(t *testing.T, r io.Reader) map[string]string {
	t.Helper()
	zip, err := gzip.NewReader(r)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for archive := tar.NewReader(zip); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil || h.Mode != 0o600 || h.Typeflag != tar.TypeReg {
			t.Fatal(h, err)
		}
		text, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimPrefix(h.Name, "pilot-bugreport/")] = string(text)
	}
}

func contents() Contents {
	self, peer := netip.MustParseAddr("fd5c:1d2:93a0::a"), netip.MustParseAddr("fd5c:1d2:93a0::b")
	c := Contents{
		At: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), Version: map[string]string{"version": "v1.2.3"}, Hostname: "laptop-of-ada",
		Log: []string{
			`{"time":"2026-03-01T12:00:00Z","msg":"session up","agent":"` + identity.AgentPublic{3}.String() + `","path":"direct 203.0.113.7:7745"}` + "\n",
			`{"msg":"a peer calls","agent":"stranger","endpoints":"[192.168.7.2:7745]"}` + "\n", `{"msg":"later","error":"stranger is away, warehouse too, laptop-of-ada"}` + "\n",
		},
		Goroutines: "1 @ 0x1 0x2\n", Metrics: `pilot_peer_rtt_seconds{peer="warehouse"} 1` + "\n", Missing: []string{"the journal: not here"},
		Facts: doctor.Facts{
			Status: &localapi.Status{
				State: "up", Network: "pilot", Zone: "pilot.internal",
				Self:        &localapi.Self{Name: "planner", FQDN: "planner.pilot.internal", Address: self, Key: identity.AgentPublic{1}, Relays: []localapi.RelayStatus{{Name: "eu-1"}}},
				Coordinator: &localapi.CoordinatorState{Addresses: []string{"coord.example:7745", "203.0.113.7:7745"}},
				Peers:       []localapi.PeerStatus{{Name: "warehouse", FQDN: "warehouse.pilot.internal", Address: peer, Key: identity.AgentPublic{3}}},
			},
			Host: inspect.Host{OS: "linux", Firewall: inspect.Seen[[]inspect.Chain]{Err: errors.New("root's to read")}},
		},
	}
	return c
}

func TestWrite(t *testing.T) {
	var plain bytes.Buffer
	names, err := Write(&plain, contents(), false)
	if err != nil {
		t.Fatal(err)
	}
	files := open(t, &plain)
	if len(files) != len(names) || files["missing.txt"] != "the journal: not here\n" {
		t.Errorf("%q", names)
	}
	for _, name := range []string{"README.txt", "version.json", "status.json", "doctor.json", "host.json", "log.jsonl", "goroutines.txt", "metrics.txt"} {
		if files[name] == "" || !slices.Contains(names, name) {
			t.Errorf("no %s", name)
		}
		if strings.HasSuffix(name, ".json") && !json.Valid([]byte(files[name])) {
			t.Errorf("%s is no JSON: %s", name, files[name])
		}
	}
	if !strings.Contains(files["host.json"], `"Err": "root's to read"`) {
		t.Errorf("an error is lost: %s", files["host.json"])
	}
	if !strings.Contains(files["log.jsonl"], identity.AgentPublic{3}.String()) || !strings.Contains(files["status.json"], "warehouse") {
		t.Error("public keys and names are missing")
	}
}

func TestRedact(t *testing.T) {
	var b bytes.Buffer
	if _, err := Write(&b, contents(), true); err != nil {
		t.Fatal(err)
	}
	files := open(t, &b)
	var all strings.Builder
	for _, text := range files {
		all.WriteString(text)
	}
	for _, gone := range []string{"warehouse", "planner", "stranger", "laptop-of-ada", "coord.example", "eu-1", "203.0.113.7", "fd5c:1d2:93a0", identity.AgentPublic{1}.String(), identity.AgentPublic{3}.String()} {
		if strings.Contains(all.String(), gone) {
			t.Errorf("%q is still there", gone)
		}
	}
	// The same by the same, and what is private stays.
	var status localapi.Status
	_ = json.Unmarshal([]byte(files["status.json"]), &status) // keys are none any more
	peer := status.Peers
	var raw struct{ Peers []struct{ Name, Key string } }
	if err := json.Unmarshal([]byte(files["status.json"]), &raw); err != nil || len(raw.Peers) != 1 {
		t.Fatal(err, peer)
	}
	if !strings.Contains(files["log.jsonl"], raw.Peers[0].Key) || !strings.Contains(files["log.jsonl"], raw.Peers[0].Name+" too") || !strings.Contains(files["metrics.txt"], raw.Peers[0].Name) {
		t.Errorf("not the same by the same: %+v\n%s", raw, files["log.jsonl"])
	}
	if !strings.Contains(files["log.jsonl"], "192.168.7.2") || !strings.Contains(files["log.jsonl"], "2026-03-01T12:00:00Z") || !strings.Contains(files["status.json"], `"network": "pilot"`) {
		t.Errorf("too much is gone: %s", files["log.jsonl"])
	}
}

func FuzzLogLines(f *testing.F) {
	f.Add(`{"msg":"m","error":"e"}`)
	f.Add(`{"a":{"b":[1]},`)
	f.Add("goroutine 1 [running]:\nmain.f(0x1, {0x2})")
	f.Fuzz(func(t *testing.T, line string) {
		got := logLines([]string{line})
		if kept, ok := allowed(line); ok && !json.Valid(kept) {
			t.Errorf("%q became %q", line, kept)
		}
		newRedactor(&Contents{Log: []string{line}}).replace(Scrub(got))
	})
}
