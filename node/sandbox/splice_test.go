// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bytes"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
)

// pair is a TCP connection within this process.
func pair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	d, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); d.Close() })
	return c.(*net.TCPConn), d.(*net.TCPConn)
}

func TestSpliceStreams(t *testing.T) {
	program, near := pair(t)
	far, server := pair(t)
	done := make(chan struct{})
	go func() { spliceStreams(near, far); close(done) }()

	// An end goes through, and what comes the other way afterwards too; a long answer grows the buffer.
	question, answer := []byte("question"), bytes.Repeat([]byte("answer"), 200_000)
	go func() {
		program.Write(question)
		program.CloseWrite()
	}()
	if got, err := io.ReadAll(server); err != nil || !bytes.Equal(got, question) {
		t.Fatalf("%q, %v", got, err)
	}
	go func() {
		server.Write(answer)
		server.Close()
	}()
	if got, err := io.ReadAll(program); err != nil || !bytes.Equal(got, answer) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	<-done
}

func TestSpliceResets(t *testing.T) {
	program, near := pair(t)
	far, server := pair(t)
	done := make(chan struct{})
	go func() { spliceStreams(near, far); close(done) }()
	server.SetLinger(0)
	server.Close()
	if _, err := program.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a reset became %v", err)
	}
	<-done
}

// flow is a program's side of a flow of datagrams.
type flow struct {
	net.Conn
	refused chan error
}

func (f flow) Refuse(err error) { f.refused <- err }

func TestSpliceDatagrams(t *testing.T) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	far, err := net.Dial("udp", server.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, b := net.Pipe() // keeps the bounds of writes
	near := flow{b, make(chan error, 2)}
	done := make(chan struct{})
	go func() { spliceDatagrams(near, far); close(done) }()
	a.Write([]byte("ping"))
	buf := make([]byte, 100)
	n, from, err := server.ReadFrom(buf)
	if err != nil || string(buf[:n]) != "ping" {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	server.WriteTo([]byte("pong"), from)
	if n, err := a.Read(buf); err != nil || string(buf[:n]) != "pong" {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	// The server goes away: the program is told, in whichever direction that shows.
	server.Close()
	a.Write([]byte("anybody there?"))
	if err := <-near.refused; !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("refused as %v", err)
	}
	<-done
}
