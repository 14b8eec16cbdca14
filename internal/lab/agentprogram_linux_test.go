// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	wgstack "golang.zx2c4.com/wireguard/tun/netstack"

	sdk "github.com/pilot-protocol/pilot"
)

// This test binary is also the program at the far end of transfers: with programVariable set it does no tests, but listens
// for connections by the sockets of a kernel, of an embedded node, or of wireguard-go's stack.
const programVariable = "PILOT_LAB_PROGRAM"

// Its ports: what is sent to the first is counted, and the count answered; the second one sends as long as somebody reads.
const (
	sinkPort   = 9009
	sourcePort = 9019
)

// program runs what programVariable names: "kernel", "sdk" or "wireguard", with its parameters after it.
func program(what string) error {
	words := strings.Fields(what)
	if len(words) == 0 {
		return errors.New("nothing is to be run")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var listen func(port uint16) (net.Listener, error)
	switch words[0] {
	case "kernel":
		listen = func(port uint16) (net.Listener, error) { return net.Listen("tcp", fmt.Sprintf("[::]:%d", port)) }
	case "sdk":
		n, err := sdk.Up(ctx, sdk.Options{Name: words[1], StateDir: words[2], Invite: words[3], NoPortMapping: true})
		if err != nil {
			return err
		}
		defer n.Close()
		fmt.Println("address", n.Addr())
		listen = func(port uint16) (net.Listener, error) { return n.Listen("tcp", fmt.Sprintf(":%d", port)) }
	case "wireguard":
		n, closeAll, err := wireguardStack(words[1:])
		if err != nil {
			return err
		}
		defer closeAll()
		listen = func(port uint16) (net.Listener, error) { return n.ListenTCP(&net.TCPAddr{Port: int(port)}) }
	default:
		return fmt.Errorf("%s is no program", words[0])
	}
	return transfers(ctx, listen)
}

// wireguardStack is wireguard-go on a stack in this process: its address, its own key, the peer's, the peer's endpoint.
func wireguardStack(words []string) (*wgstack.Net, func(), error) {
	tunnel, stack, err := wgstack.CreateNetTUN([]netip.Addr{netip.MustParseAddr(words[0])}, nil, 1420)
	if err != nil {
		return nil, nil, err
	}
	d := device.NewDevice(tunnel, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, ""))
	keys := [2]string{}
	for i := range keys {
		raw, err := base64.StdEncoding.DecodeString(words[1+i])
		if err != nil {
			return nil, nil, err
		}
		keys[i] = hex.EncodeToString(raw)
	}
	err = d.IpcSet(fmt.Sprintf("private_key=%s\nlisten_port=51821\npublic_key=%s\nendpoint=%s\nallowed_ip=::/0\n", keys[0], keys[1], words[3]))
	if err == nil {
		err = d.Up()
	}
	return stack, d.Close, err
}

// transfers serves both ports until ctx ends.
func transfers(ctx context.Context, listen func(uint16) (net.Listener, error)) error {
	for port, serve := range map[uint16]func(net.Conn){
		sinkPort: func(c net.Conn) {
			n, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 256<<10))
			fmt.Fprintln(c, n)
		},
		sourcePort: func(c net.Conn) {
			chunk := make([]byte, 128<<10)
			for {
				if _, err := c.Write(chunk); err != nil {
					return
				}
			}
		},
	} {
		l, err := listen(port)
		if err != nil {
			return err
		}
		context.AfterFunc(ctx, func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { defer c.Close(); serve(c) }()
			}
		}()
	}
	fmt.Println("listening")
	<-ctx.Done()
	return nil
}
