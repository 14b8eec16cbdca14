// SPDX-License-Identifier: Apache-2.0

package noise

import (
	"bytes"
	"crypto/mlkem"
	"crypto/mlkem/mlkemtest"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"strings"
	"testing"

	flynn "github.com/flynn/noise"

	"github.com/pilot-protocol/pilot/identity"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	check(t, err)
	return b
}

// TestNoiseVectors runs the published vectors through handshake(), with the psk set late as we do, and takes the
// transport messages with our own AEADs.
func TestNoiseVectors(t *testing.T) {
	file, err := os.ReadFile("testdata/noise-ikpsk2.txt")
	check(t, err)
	ran := map[suite]int{}
	for _, block := range strings.Split(string(file), "\n\n") {
		v := map[string]string{}
		for line := range strings.Lines(block) {
			if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && line[0] != '#' {
				v[name] = value
			}
		}
		s := suiteChaCha
		switch v["handshake"] {
		case "":
			continue
		case "Noise_IKpsk2_25519_AESGCM_SHA256":
			s = suiteAES
		}
		ran[s]++
		runNoiseVector(t, s, v)
	}
	if ran[suiteAES] != 4 || ran[suiteChaCha] != 4 {
		t.Fatalf("ran %v", ran)
	}
}

func runNoiseVector(t *testing.T, s suite, v map[string]string) {
	t.Helper()
	pair := func(name string) flynn.DHKey {
		k, err := flynn.DH25519.GenerateKeypair(bytes.NewReader(unhex(t, v[name])))
		check(t, err)
		return k
	}
	pro, static := unhex(t, v["prologue"]), pair("resp_static")
	if len(pro) == 0 {
		pro = nil
	}
	i, err := handshake(s, bytes.NewReader(unhex(t, v["gen_init_ephemeral"])), pro, pair("init_static"), static.Public)
	check(t, err)
	r, err := handshake(s, bytes.NewReader(unhex(t, v["gen_resp_ephemeral"])), pro, static, nil)
	check(t, err)
	same := func(got []byte, name string) {
		t.Helper()
		if !bytes.Equal(got, unhex(t, v[name])) {
			t.Fatalf("%s: %s: got %x", v["handshake"], name, got)
		}
	}
	message, _, _, err := i.WriteMessage(nil, unhex(t, v["msg_0_payload"]))
	check(t, err)
	same(message, "msg_0_ciphertext")
	payload, _, _, err := r.ReadMessage(nil, message)
	check(t, err)
	same(payload, "msg_0_payload")

	check(t, r.SetPresharedKey(unhex(t, v["preshared_key"])))
	check(t, i.SetPresharedKey(unhex(t, v["preshared_key"])))
	message, receive, send, err := r.WriteMessage(nil, unhex(t, v["msg_1_payload"]))
	check(t, err)
	same(message, "msg_1_ciphertext")
	payload, sendI, receiveI, err := i.ReadMessage(nil, message)
	check(t, err)
	same(payload, "msg_1_payload")

	var si, sr Session
	check(t, si.setKeys(s, sendI, receiveI))
	check(t, sr.setKeys(s, send, receive))
	for n := uint64(2); v["msg_"+string(rune('0'+n))+"_ciphertext"] != ""; n++ {
		name := "msg_" + string(rune('0'+n))
		var nonce [12]byte
		if s == suiteAES {
			binary.BigEndian.PutUint64(nonce[4:], (n-2)/2)
		} else {
			binary.LittleEndian.PutUint64(nonce[4:], (n-2)/2)
		}
		from, to := &si, &sr
		if n%2 == 1 {
			from, to = &sr, &si
		}
		sealed := from.keys.Load().send.Seal(nil, nonce[:], unhex(t, v[name+"_payload"]), nil)
		same(sealed, name+"_ciphertext")
		opened, err := to.keys.Load().receive.Open(nil, nonce[:], sealed, nil)
		check(t, err)
		same(opened, name+"_payload")
	}
}

var update = flag.Bool("update", false, "write testdata/golden.json anew")

// golden is testdata/golden.json: what this package adds to Noise, for a second implementation to compare with.
// All values are hexadecimal.
type golden struct {
	Prologue, PSK, MAC1Key, CookieKey, MAC1, Cookie, MAC2, CookieReply, InitiationPayload, AnswerPayload, Record map[string]string
}

// TestGolden keeps the wire format from changing by accident. Inputs are runs of counting bytes.
func TestGolden(t *testing.T) {
	run := func(from, n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(from + i)
		}
		return b
	}
	h := func(b []byte) string { return hex.EncodeToString(b) }
	var g golden
	network, agent := identity.AuthorityPublic(run(1, 32)), identity.AgentPublic(run(2, 32))
	tunnel := identity.TunnelPublic(run(3, 32))
	g.Prologue = map[string]string{
		"network": h(network[:]), "responder": h(agent[:]),
		"chacha": h(prologue(suiteChaCha, network, agent)), "aes": h(prologue(suiteAES, network, agent)),
	}

	dk, err := mlkem.NewDecapsulationKey768(run(4, 64))
	check(t, err)
	shared, text, err := mlkemtest.Encapsulate768(dk.EncapsulationKey(), run(5, 32))
	check(t, err)
	key, err := psk(shared, dk.EncapsulationKey().Bytes(), text)
	check(t, err)
	g.PSK = map[string]string{"seed": h(run(4, 64)), "random": h(run(5, 32)), "shared": h(shared), "psk": h(key)}

	mac1Key, cookieKey := labelKey(mac1Tag, tunnel), labelKey(cookieTag, tunnel)
	g.MAC1Key = map[string]string{"tunnel": h(tunnel[:]), "key": h(mac1Key[:])}
	g.CookieKey = map[string]string{"tunnel": h(tunnel[:]), "key": h(cookieKey[:])}
	message := run(6, minInitiation)
	d := appendFragment(nil, typeInitiation, suiteAES, 1, fragments(len(message)), 0x01020304, 0, message)
	d = appendMACs(d, 0, mac1Key[:], run(7, 16))
	f, err := parseFragment(d)
	check(t, err)
	g.MAC1 = map[string]string{"fragment": h(f.signed), "mac1": h(f.mac1)}
	g.MAC2 = map[string]string{"cookie": h(run(7, 16)), "mac2": h(f.mac2)}

	c := cookies{rand: bytes.NewReader(run(8, 24)), secret: [32]byte(run(9, 32)), current: true, made: epoch}
	from := netip.MustParseAddrPort("192.0.2.1:7745")
	cookie := cookieFor(c.secret, from)
	g.Cookie = map[string]string{"secret": h(c.secret[:]), "from": from.String(), "cookie": h(cookie[:])}
	reply, err := c.appendReply(nil, &f, from, cookieKey)
	check(t, err)
	g.CookieReply = map[string]string{"nonce": h(run(8, 24)), "reply": h(reply)}

	creds := credentials{[]byte("statement"), []byte("certificate")}
	p := initiationPayload{0x01020304, 0x05060708090a0b0c, [32]byte(run(10, 32)), run(11, kemKeySize), creds}
	g.InitiationPayload = map[string]string{"answerKey": h(p.answerKey[:]), "kemKey": h(p.kemKey), "payload": h(p.append(nil))}
	g.AnswerPayload = map[string]string{"payload": h(appendAnswerPayload(nil, 0x0d0e0f10, creds))}

	g.Record = map[string]string{"key": h(run(12, 32)), "plaintext": h([]byte("pilot"))}
	for name, s := range map[string]suite{"chacha": suiteChaCha, "aes": suiteAES} {
		session := Session{initiator: true, remote: 0x11121314}
		session.sent.Store(0x15161718)
		state := flynn.UnsafeNewCipherState(s.flynn(), [32]byte(run(12, 32)), 0)
		check(t, session.setKeys(s, state, state))
		record, err := session.Seal(nil, FlagControl, []byte("pilot"))
		check(t, err)
		g.Record[name] = h(record)
	}

	got, err := json.MarshalIndent(g, "", "\t")
	check(t, err)
	if *update {
		check(t, os.WriteFile("testdata/golden.json", append(got, '\n'), 0o644))
	}
	want, err := os.ReadFile("testdata/golden.json")
	check(t, err)
	if !bytes.Equal(append(got, '\n'), want) {
		t.Fatalf("the wire format changed; if that is meant, run with -update and raise Version\n%s", got)
	}
}
