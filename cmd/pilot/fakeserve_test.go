// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io"
	"net"

	"github.com/pilot-protocol/pilot/node/localapi"
)

func (d *fakeDaemon) Serve(_ context.Context, r localapi.ServeRequest) (localapi.ServeList, error) {
	switch r.Port {
	case 81:
		return localapi.ServeList{}, d.fail(localapi.CodePortTaken, "port 81 is in use", "choose another")
	case 82:
		return localapi.ServeList{}, d.fail(localapi.CodeForbidden, "you may not", "ask root")
	case 83:
		return localapi.ServeList{}, d.fail(localapi.CodeNotFound, "port 83 is not published", "see: pilot serve ls")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.serves = append(d.serves, r)
	return localapi.ServeList{Served: []localapi.Served{{Protocol: d.text("tcp"), Port: r.Port, Target: d.text("127.0.0.1:8080")}}}, nil
}

func (d *fakeDaemon) ServeList(context.Context) (localapi.ServeList, error) {
	if d.state != localapi.StateUp {
		return localapi.ServeList{Served: []localapi.Served{}}, nil
	}
	return localapi.ServeList{Served: d.served()}, nil
}

func (d *fakeDaemon) served() []localapi.Served {
	return []localapi.Served{
		{Protocol: "http", Port: 80, Target: d.text("127.0.0.1:8080"), Active: 2, Connections: 17, RxBytes: 1200, TxBytes: 1_500_000},
		{Protocol: d.text("udp"), Port: 53, Target: "127.0.0.1:5353", Refused: 1, Failed: 3,
			Problem: &localapi.Problem{Code: d.text("UNAVAILABLE"), Message: d.text("nobody answers"), Hint: d.text("is it there?")}},
	}
}

// Connect gives each caller an echo; over TCP one that speaks first.
func (d *fakeDaemon) Connect(_ context.Context, r localapi.ConnectRequest) (net.Conn, error) {
	if err := d.trouble(r.Host); err != nil {
		return nil, err
	}
	if r.Port == 81 {
		return nil, d.fail(localapi.CodeRefused, "nothing listens there", "is it running?")
	}
	if r.Protocol == localapi.ServeUDP {
		return udpEcho()
	}
	// Sockets of the kernel's: they can be closed by half.
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
	go func() {
		defer far.Close()
		_, _ = io.WriteString(far, "hello from "+r.Host+"\n") // the reader sees what is missing
		_, _ = io.Copy(far, far)
	}()
	return near, nil
}

// echoed is a socket whose other end goes with it.
type echoed struct {
	net.Conn
	far net.PacketConn
}

func (e echoed) Close() error { return errors.Join(e.far.Close(), e.Conn.Close()) }

func udpEcho() (net.Conn, error) {
	far, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := far.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = far.WriteTo(append([]byte("echo: "), buf[:n]...), from)
		}
	}()
	near, err := net.Dial("udp", far.LocalAddr().String())
	if err != nil {
		far.Close()
		return nil, err
	}
	return echoed{near, far}, nil
}
