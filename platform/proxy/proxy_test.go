// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const target = "relay.example:443" // no resolver knows it

// fakeProxy speaks CONNECT over pipes. What is connected echoes what it is sent, after a greeting.
type fakeProxy struct {
	mu     sync.Mutex
	word   string // "user:password" that it wants; empty: none
	answer string // instead of all else
	asked  []string
	dialed []string
	group  sync.WaitGroup
}

func (p *fakeProxy) dial(_ context.Context, _, addr string) (net.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dialed = append(p.dialed, addr)
	a, b := net.Pipe()
	p.group.Go(func() { p.serve(b) })
	return a, nil
}

func (p *fakeProxy) serve(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	req, err := http.ReadRequest(r)
	if err != nil {
		return
	}
	p.mu.Lock()
	word, answer := p.word, p.answer
	p.asked = append(p.asked, req.Method+" "+req.Host)
	p.mu.Unlock()
	switch given := req.Header.Get("Proxy-Authorization"); {
	case answer != "":
		io.WriteString(c, answer)
	case word != "" && given != "Basic "+base64.StdEncoding.EncodeToString([]byte(word)):
		io.WriteString(c, "HTTP/1.1 407 Who are you?\r\nProxy-Authenticate: Basic realm=\"r\"\r\nProxy-Authenticate: Negotiate\r\nContent-Length: 0\r\n\r\n")
	default:
		io.WriteString(c, "HTTP/1.1 200 Connected\r\n\r\nhello") // the greeting comes in the same read
		io.Copy(c, r)
	}
}

func mustURL(s string) *url.URL {
	u, err := url.Parse(s)
	if err != nil {
		panic(err)
	}
	return u
}

func environment(kv ...string) func(string) string {
	return func(name string) string {
		for _, e := range kv {
			if n, v, _ := strings.Cut(e, "="); n == name {
				return v
			}
		}
		return ""
	}
}

func (p *fakeProxy) dialer(t *testing.T, env ...string) *Dialer {
	t.Cleanup(p.group.Wait)
	return New(Options{Env: environment(env...), Dial: p.dial})
}

// try makes a connection and speaks over it.
func try(t *testing.T, d *Dialer, addr string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if p, ok := c.(interface{ Proxied() bool }); !ok || !p.Proxied() {
		t.Error("the connection does not say that it is through a proxy")
	}
	cancel() // the connection outlives the context
	go io.WriteString(c, " world")
	got := make([]byte, len("hello world"))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello world" {
		t.Errorf("%q, %v", got, err)
	}
	return nil
}

func TestConnect(t *testing.T) {
	p := &fakeProxy{}
	if err := try(t, p.dialer(t, "HTTPS_PROXY=http://proxy.example:3128"), target); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(p.asked, p.dialed) != "[CONNECT relay.example:443] [proxy.example:3128]" {
		t.Errorf("asked %q, dialled %q", p.asked, p.dialed)
	}
}

func TestWhichProxy(t *testing.T) {
	for _, tt := range []struct{ env, addr, want string }{
		{"", target, ""},
		{"HTTPS_PROXY=http://p:1", target, "p:1"},
		{"https_proxy=p:1 HTTPS_PROXY=q:2", target, "p:1"},
		{"ALL_PROXY=http://p", target, "p:80"},
		{"all_proxy=socks5h://p", target, "p:1080"},
		{"HTTPS_PROXY=https://p ALL_PROXY=http://q", target, "p:443"},
		{"HTTP_PROXY=http://p:1", target, ""}, // for plain HTTP, which this project never speaks
		{"HTTPS_PROXY=http://p:1 NO_PROXY=.example", target, ""},
		{"HTTPS_PROXY=http://p:1 no_proxy=*", target, ""},
		{"HTTPS_PROXY=http://p:1 NO_PROXY=other.example,10.0.0.0/8", target, "p:1"},
		{"HTTPS_PROXY=http://p:1 NO_PROXY=10.0.0.0/8", "10.1.2.3:443", ""},
		{"HTTPS_PROXY=http://p:1", "127.0.0.1:443", ""},
		{"HTTPS_PROXY=http://p:1", "[::1]:443", ""},
		{"HTTPS_PROXY=http://[2001:db8::1]:1", target, "[2001:db8::1]:1"},
	} {
		d := New(Options{Env: environment(strings.Fields(tt.env)...)})
		if got := d.Proxy(tt.addr); got != tt.want {
			t.Errorf("%s, %s: %q, want %q", tt.env, tt.addr, got, tt.want)
		}
	}
}

// A node in a shell that took over what pilot env printed does not go through its own network.
func TestOwnProxies(t *testing.T) {
	for address, want := range map[string]string{
		"http://pilot:secret@127.0.0.1:3128": "", "socks5h://pilot:secret@127.0.0.1:1080": "",
		"http://127.0.0.1:3129": "127.0.0.1:3129", "127.0.0.1:8080": "127.0.0.1:8080",
	} {
		d := New(Options{Env: func(name string) string {
			return map[string]string{"HTTPS_PROXY": address, OwnProxies: "127.0.0.1:3128,127.0.0.1:1080"}[name]
		}})
		if got := d.Proxy("192.0.2.1:443"); got != want {
			t.Errorf("%s: by %q", address, got)
		}
	}
}

func TestCredentialsOfTheURL(t *testing.T) {
	p := &fakeProxy{word: "me:s3cr et"}
	if err := try(t, p.dialer(t, "HTTPS_PROXY=http://me:s3cr%20et@proxy:3128"), target); err != nil {
		t.Fatal(err)
	}
	err := try(t, p.dialer(t, "HTTPS_PROXY=http://me:wr0ng@proxy:3128"), target)
	if !errors.Is(err, ErrAuth) || !strings.Contains(err.Error(), "Negotiate") {
		t.Errorf("got %v", err)
	}
	if n := len(p.asked); n != 2 {
		t.Errorf("asked %d times: a password that does not change is not tried twice", n)
	}
}

func TestRotatingPasswordOfAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "auth")
	rotate := func(p *fakeProxy, word string) {
		t.Helper()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.word = word
		if err := os.WriteFile(file, []byte(word+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := &fakeProxy{}
	d := p.dialer(t, "HTTPS_PROXY=http://proxy:3128", AuthFile+"="+file)
	for _, word := range []string{"me:one", "me:two", "me:two", "me:thr:ee"} {
		rotate(p, word)
		if err := try(t, d, target); err != nil {
			t.Fatalf("%s: %v", word, err)
		}
	}
	if n := len(p.asked); n != 6 {
		t.Errorf("asked %d times, want one for each connection and one for each change", n)
	}
	p.mu.Lock()
	p.word = "nobody knows"
	p.mu.Unlock()
	if err := try(t, d, target); !errors.Is(err, ErrAuth) {
		t.Errorf("got %v", err)
	}
}

func TestPasswordOfACommand(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the command is the Unix shell's")
	}
	p := &fakeProxy{word: "me:from a command"}
	count := filepath.Join(t.TempDir(), "count")
	command := "echo >> " + count + "; echo 'me:from a command'"
	d := p.dialer(t, "HTTPS_PROXY=http://proxy:3128", AuthCommand+"="+command)
	for range 3 {
		if err := try(t, d, target); err != nil {
			t.Fatal(err)
		}
	}
	if data, _ := os.ReadFile(count); len(data) != 1 {
		t.Errorf("the command ran %d times", len(data))
	}
}

func TestAbuse06ProxySecretsStayInside(t *testing.T) {
	const secret = "hunter2"
	dir := t.TempDir()
	file := filepath.Join(dir, "auth")
	if err := os.WriteFile(file, []byte(secret), 0o600); err != nil { // no colon
		t.Fatal(err)
	}
	for _, tt := range []struct {
		env  []string
		want error
	}{
		{[]string{"HTTPS_PROXY=http://me:" + secret + "@proxy:3128"}, ErrAuth},
		{[]string{"HTTPS_PROXY=http://me:" + secret + "@proxy:port"}, ErrConfig},
		{[]string{"HTTPS_PROXY=ftp://me:" + secret + "@proxy:3128"}, ErrConfig},
		{[]string{"HTTPS_PROXY=http://me:" + secret + "%zz@proxy:3128"}, ErrConfig},
		{[]string{"HTTPS_PROXY=http://proxy:3128", AuthFile + "=" + file}, ErrConfig},
		{[]string{"HTTPS_PROXY=http://proxy:3128", AuthFile + "=" + filepath.Join(dir, "absent")}, ErrConfig},
		{[]string{"HTTPS_PROXY=http://proxy:3128", AuthCommand + "=echo " + secret + "; echo " + secret + " >&2; exit 3"}, ErrConfig},
	} {
		p := &fakeProxy{word: "other:word"}
		d := p.dialer(t, tt.env...)
		err := try(t, d, target)
		if !errors.Is(err, tt.want) {
			t.Errorf("%q: %v, want %v", tt.env, err, tt.want)
		}
		if c, _ := d.credentials(context.Background(), mustURL("http://me:"+secret+"@p"), nil); c != nil {
			err = fmt.Errorf("%w %v %+v %s %#v", err, c, *c, c, *c)
		}
		if strings.Contains(err.Error(), secret) {
			t.Errorf("%v", err)
		}
	}
}

func TestAbuse06CommandGetsNoPasswords(t *testing.T) {
	const secret = "hunter2"
	t.Setenv("HTTPS_PROXY", "http://me:"+secret+"@proxy:3128")
	t.Setenv("https_proxy", "http://me:"+secret+"@proxy:3128")
	t.Setenv("NO_PROXY", "example.com")
	c, err := source{command: "echo me:$(env | grep -c -e " + secret[:4] + secret[4:] + ")-$NO_PROXY"}.read(t.Context())
	if err != nil || c.password != "0-example.com" {
		t.Errorf("the command found %q, %v", c.password, err)
	}
}

func TestAnswersOfOtherKinds(t *testing.T) {
	for answer, want := range map[string]error{
		"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n":            ErrRefused,
		"HTTP/1.1 502 Bad Gateway\r\n\r\n":                               ErrRefused,
		"HTTP/1.1 302 Found\r\nLocation: http://portal.example/\r\n\r\n": ErrRefused,
		"HTTP/1.1 200":        io.ErrUnexpectedEOF,
		"SSH-2.0-OpenSSH\r\n": nil,
		"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 2*maxAnswer): nil,
	} {
		p := &fakeProxy{answer: answer}
		err := try(t, p.dialer(t, "HTTPS_PROXY=http://proxy:3128"), target)
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%.40q: %v, want %v", answer, err, want)
		}
	}
}

func TestProxyThatIsSilent(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	a, b := net.Pipe()
	defer b.Close()
	d := New(Options{Env: environment("HTTPS_PROXY=http://proxy:3128"), Dial: func(context.Context, string, string) (net.Conn, error) {
		cancel()
		return a, nil
	}})
	if _, err := d.DialContext(ctx, "tcp", target); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestAddressWithALineBreak(t *testing.T) {
	p := &fakeProxy{}
	if err := try(t, p.dialer(t, "HTTPS_PROXY=http://proxy:3128"), "a:1 HTTP/1.1\r\nX: y"); err == nil || len(p.dialed) > 0 {
		t.Errorf("%v, dialled %q", err, p.dialed)
	}
}

// TestSocks5 speaks RFC 1928 with a password (RFC 1929), and sees that the proxy gets the name.
func TestSocks5(t *testing.T) {
	done := make(chan string, 1)
	d := New(Options{Env: environment("ALL_PROXY=socks5h://me:word@proxy"), Dial: func(context.Context, string, string) (net.Conn, error) {
		a, b := net.Pipe()
		go func() {
			defer b.Close()
			b.SetDeadline(time.Now().Add(10 * time.Second))
			buf := make([]byte, 256)
			read := func(n int) []byte { io.ReadFull(b, buf[:n]); return buf[:n] }
			read(int(read(2)[1]))
			b.Write([]byte{5, 2})
			read(int(read(2)[1]))
			read(int(read(1)[0]))
			b.Write([]byte{1, 0})
			name := string(read(int(read(5)[4])))
			read(2)
			b.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
			io.WriteString(b, "hello")
			io.Copy(b, b)
			done <- name
		}()
		return a, nil
	}})
	if err := try(t, d, target); err != nil {
		t.Fatal(err)
	}
	if name := <-done; name != "relay.example" {
		t.Errorf("asked for %q", name)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 Connected\r\n\r\nhello"))
	f.Add([]byte("HTTP/1.1 407 x\r\nProxy-Authenticate: Basic realm=\"r\"\r\n\r\n"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		a, b := net.Pipe()
		go func() {
			defer b.Close()
			r := bufio.NewReader(b)
			for line := "x"; strings.TrimSpace(line) != ""; {
				line, _ = r.ReadString('\n')
			}
			b.Write(answer)
		}()
		c, err := converse(context.Background(), a, mustURL("http://p:1"), target, &credentials{})
		if err == nil {
			io.Copy(io.Discard, c)
		}
		a.Close()
	})
}
