// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

func (d *daemon) Serve(_ context.Context, r ServeRequest) (ServeList, error) {
	return ServeList{Served: []Served{{Protocol: r.Protocol, Port: r.Port, Target: r.Target}}}, d.note("serve " + r.Action)
}

func (d *daemon) ServeList(context.Context) (ServeList, error) {
	return ServeList{Served: []Served{{Protocol: ServeTCP, Port: 80}}}, d.note("serve list")
}

// Connect hands out one end of a connection, and keeps the other for the test.
func (d *daemon) Connect(_ context.Context, r ConnectRequest) (net.Conn, error) {
	if err := d.note("connect " + r.Host); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return nil, err
	}
	far, err := l.Accept()
	if err != nil {
		return nil, err
	}
	d.far <- far.(*net.TCPConn)
	return near, nil
}

// Bytes go both ways over the local socket, and each direction ends on its own.
func TestConnect(t *testing.T) {
	d := &daemon{far: make(chan *net.TCPConn, 1)}
	conn, err := client(serve(t, d, anybody)).Connect(t.Context(), ConnectRequest{Host: "warehouse", Port: 22})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	far := <-d.far
	defer far.Close()
	if _, err := io.WriteString(conn, "question"); err != nil {
		t.Fatal(err)
	}
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(far); string(got) != "question" || err != nil {
		t.Errorf("%q %v", got, err)
	}
	if _, err := io.WriteString(far, "answer"); err != nil {
		t.Fatal(err)
	}
	far.Close()
	if got, err := io.ReadAll(conn); string(got) != "answer" || err != nil {
		t.Errorf("%q %v", got, err)
	}
}

// What was sent with the request, before its answer, is not lost.
func TestConnectTakesWhatCameEarly(t *testing.T) {
	d := &daemon{far: make(chan *net.TCPConn, 1)}
	conn, err := net.Dial("unix", serve(t, d, anybody))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	body := `{"host":"warehouse","port":22}`
	if _, err := io.WriteString(conn, "POST /v1/connect HTTP/1.1\r\nHost: pilot\r\nConnection: Upgrade\r\nUpgrade: pilot-stream\r\nContent-Length: 30\r\n\r\n"+body+"early"); err != nil {
		t.Fatal(err)
	}
	far := <-d.far
	defer far.Close()
	got := make([]byte, 5)
	if _, err := io.ReadFull(far, got); err != nil || string(got) != "early" {
		t.Errorf("%q %v", got, err)
	}
}

// Errors come before the upgrade, as of all calls.
func TestConnectFails(t *testing.T) {
	d := &daemon{err: &Error{Code: CodeNotTrusted, Message: "warehouse has not consented", Hint: "there: pilot trust approve"}}
	socket := serve(t, d, anybody)
	var e *Error
	if _, err := client(socket).Connect(t.Context(), ConnectRequest{Host: "warehouse", Port: 22}); !errors.As(err, &e) || *e != *d.err.(*Error) {
		t.Errorf("%#v", err)
	}
	if _, err := client(socket+"x").Connect(t.Context(), ConnectRequest{}); !errors.As(err, &e) || e.Code != CodeNotRunning {
		t.Errorf("no daemon: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := client(socket).Connect(ctx, ConnectRequest{Host: "warehouse", Port: 22}); err == nil {
		t.Error("a cancelled call")
	}
	d.err = nil
	code, text := raw(t, socket, http.MethodPost, "/v1/connect", "pilot", http.Header{}, `{"host":"warehouse","port":22}`)
	if code != http.StatusBadRequest || !strings.Contains(text, CodeUsage) {
		t.Errorf("without an upgrade: %d %s", code, text)
	}
	code, text = raw(t, socket, http.MethodPost, "/v1/connect", "pilot", http.Header{}, `{"host":1}`)
	if code != http.StatusBadRequest || !strings.Contains(text, CodeUsage) {
		t.Errorf("a broken request: %d %s", code, text)
	}
}

// The end of the daemon is the end of its streams, and neither side takes that for the end of what the other had to say.
func TestStreamsEndWithTheDaemon(t *testing.T) {
	d := &daemon{far: make(chan *net.TCPConn, 1)}
	var conn net.Conn
	var far *net.TCPConn
	t.Run("while it runs", func(t *testing.T) {
		var err error
		if conn, err = client(serve(t, d, anybody)).Connect(context.WithoutCancel(t.Context()), ConnectRequest{Host: "warehouse", Port: 22}); err != nil {
			t.Fatal(err)
		}
		far = <-d.far
	})
	defer conn.Close()
	defer far.Close()
	if _, err := far.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("the far end meets %v", err)
	}
}

func TestServeCalls(t *testing.T) {
	d := &daemon{}
	c := client(serve(t, d, anybody))
	if l, err := c.Serve(t.Context(), ServeRequest{Action: ActionPublish, Protocol: ServeHTTP, Port: 80, Target: "unix:/run/x"}); err != nil || l.Served[0].Target != "unix:/run/x" {
		t.Error(l, err)
	}
	if l, err := c.ServeList(t.Context()); err != nil || len(l.Served) != 1 {
		t.Error(l, err)
	}
	if len(d.calls) != 2 {
		t.Errorf("calls: %v", d.calls)
	}
}

// byteConn is a stream that is read from a buffer, and written to one.
type byteConn struct {
	net.Conn
	in  io.Reader
	out bytes.Buffer
}

func (c *byteConn) Read(b []byte) (int, error)  { return c.in.Read(b) }
func (c *byteConn) Write(b []byte) (int, error) { return c.out.Write(b) }

func TestDatagrams(t *testing.T) {
	var sent byteConn
	out := Datagrams(&sent)
	texts := []string{"one", "", strings.Repeat("x", MaxDatagram)}
	for _, text := range texts {
		if n, err := out.Write([]byte(text)); n != len(text) || err != nil {
			t.Fatal(n, err)
		}
	}
	if _, err := out.Write(make([]byte, MaxDatagram+1)); err == nil {
		t.Error("one that is too long")
	}
	stream := sent.out.Bytes()
	if !bytes.HasPrefix(stream, []byte{0, 3, 'o', 'n', 'e', 0, 0, 0xff, 0xff, 'x'}) {
		t.Errorf("on the stream: % x", stream[:10])
	}
	in := Datagrams(&byteConn{in: bytes.NewReader(stream)})
	buf := make([]byte, MaxDatagram)
	for _, text := range texts {
		if n, err := in.Read(buf); string(buf[:n]) != text || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
	}
	if _, err := in.Read(buf); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	for _, cut := range []int{1, 4} {
		if _, err := Datagrams(&byteConn{in: bytes.NewReader(stream[:cut])}).Read(buf); err != io.ErrUnexpectedEOF {
			t.Errorf("cut after %d bytes: %v", cut, err)
		}
	}
	if _, err := Datagrams(&byteConn{in: bytes.NewReader(stream)}).Read(buf[:2]); err == nil {
		t.Error("a buffer that is too small")
	}
}

// FuzzDatagrams: any bytes are datagrams and an end; what was read and is written again is what came.
func FuzzDatagrams(f *testing.F) {
	f.Add([]byte{0, 3, 'o', 'n', 'e', 0, 0})
	f.Add([]byte{0xff, 0xff, 1})
	f.Add([]byte{0})
	f.Fuzz(func(t *testing.T, stream []byte) {
		var again byteConn
		in, out := Datagrams(&byteConn{in: bytes.NewReader(stream)}), Datagrams(&again)
		buf := make([]byte, MaxDatagram)
		for {
			n, err := in.Read(buf)
			if err != nil {
				break
			}
			if _, err := out.Write(buf[:n]); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.HasPrefix(stream, again.out.Bytes()) {
			t.Errorf("% x became % x", stream, again.out.Bytes())
		}
	})
}
