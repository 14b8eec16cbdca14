// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"reflect"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilot-protocol/pilot/node/localapi"
)

// ncResult is what nc --json says at its end.
type ncResult struct {
	Host     string `json:"host"`
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol"`
	Sent     int64  `json:"sent"`     // bytes
	Received int64  `json:"received"` // bytes
}

func (p *program) ncCommand() *cli.Command {
	return &cli.Command{
		Name: "nc", Usage: "connect standard input and output to a port of an agent", ArgsUsage: "HOST PORT", BashComplete: p.completeAgents,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "udp", Aliases: []string{"u"}, Usage: "send each line or block that is read as a datagram"},
			&cli.StringFlag{Name: "timeout", Value: "30s", Usage: "`TIME` to wait for the connection (default 30s)"},
			&cli.StringFlag{Name: "wait", Value: "2s", Usage: "with --udp: `TIME` without an answer after which it ends once all was sent (default 2s)"},
		},
		Description: manual{
			about: `Connects to PORT of HOST, an agent's name or address, sends standard input there and writes what comes back to standard
output. It ends when both sides have said all; one side may go on after the other has. Programs that know nothing of
the network can use it as their way into it.

What goes wrong before the connection stands, and with --json the number of bytes at the end, is said on standard error.`,
			examples: []string{"pilot nc warehouse 22", "ssh -o ProxyCommand='pilot nc %h %p' warehouse", "echo status | pilot nc --udp warehouse 5000"},
			exits:    []int{localapi.ExitNotRunning, localapi.ExitForbidden, localapi.ExitNotFound, localapi.ExitUnreachable, localapi.ExitKeyMismatch},
			result:   reflect.TypeFor[ncResult](),
			note:     "printed on standard error, in one line, at the end",
		}.String(),
		Action: p.nc,
	}
}

func (p *program) nc(c *cli.Context) error {
	r, err := p.runNC(c)
	if err == nil && c.Bool("json") {
		return writeJSON(p.stderr, r, "")
	}
	if err != nil && c.Context.Err() == nil { // standard output is the peer's
		p.tell(c, err)
		return exit(localapi.ExitStatus(asError(err).Code))
	}
	return err
}

func (p *program) runNC(c *cli.Context) (ncResult, error) {
	r := ncResult{Protocol: localapi.ServeTCP}
	if err := positional(c, 2, 2); err != nil {
		return r, err
	}
	port, err := strconv.ParseUint(c.Args().Get(1), 10, 16)
	if err != nil || port == 0 {
		return r, usage("%q is not a port", shown(c.Args().Get(1)))
	}
	timeout, err := durationFlag(c, "timeout")
	if err != nil {
		return r, err
	}
	wait, err := durationFlag(c, "wait")
	if err != nil {
		return r, err
	}
	if c.Bool("udp") {
		r.Protocol = localapi.ServeUDP
	}
	r.Host, r.Port = c.Args().First(), uint16(port)
	client, err := p.client(c)
	if err != nil {
		return r, err
	}
	conn, err := client.Connect(c.Context, localapi.ConnectRequest{Protocol: r.Protocol, Host: r.Host, Port: r.Port, Timeout: timeout})
	if err != nil {
		return r, err
	}
	n := ncRun{p: p, conn: conn}
	if c.Bool("udp") {
		n.wait = wait
	}
	err = n.run(c.Context)
	r.Sent, r.Received = n.sent.Load(), n.received.Load()
	return r, err
}

// ncRun is standard input and output joined to a connection.
type ncRun struct {
	p              *program
	conn           net.Conn
	wait           time.Duration // not 0: each read and write is a datagram, and there is no end but silence
	sent, received atomic.Int64  // bytes
	came           chan struct{} // one slot: something was received
}

// run returns when both sides have said all, or one of them fails. A read of standard input can't be interrupted: it may
// outlive the call.
func (n *ncRun) run(ctx context.Context) error {
	defer n.conn.Close()
	n.came = make(chan struct{}, 1)
	said, heard := make(chan error, 1), make(chan error, 1)
	go func() { said <- n.say() }()
	go func() { heard <- n.hear() }()
	var silence <-chan time.Time
	for said != nil || heard != nil {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-said:
			if err != nil {
				return err
			}
			if said = nil; n.wait > 0 {
				silence = time.After(n.wait)
			}
		case <-n.came:
			if silence != nil {
				silence = time.After(n.wait)
			}
		case <-silence:
			return nil
		case err := <-heard:
			if err != nil || n.wait > 0 || isTerminal(n.p.stdin) {
				return err
			}
			heard = nil
			closeOutput(n.p.stdout)
		}
	}
	return nil
}

// say sends what standard input has.
func (n *ncRun) say() error {
	buf := make([]byte, 64<<10-1) // a datagram's
	for {
		count, err := n.p.stdin.Read(buf)
		if count > 0 {
			if _, failed := n.conn.Write(buf[:count]); failed != nil {
				return errBroken("the connection broke off: ", failed)
			}
			n.sent.Add(int64(count))
		}
		switch {
		case err == nil:
		case !errors.Is(err, io.EOF):
			return errBroken("standard input can't be read: ", err)
		case n.wait > 0:
			return nil
		default:
			return n.end()
		}
	}
}

// end says that there is no more to be sent.
func (n *ncRun) end() error {
	w, ok := n.conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	if err := w.CloseWrite(); err != nil {
		return errBroken("the connection broke off: ", err)
	}
	return nil
}

// hear writes to standard output what comes.
func (n *ncRun) hear() error {
	buf := make([]byte, 64<<10)
	for {
		count, err := n.conn.Read(buf)
		if count > 0 {
			n.received.Add(int64(count))
			if _, failed := n.p.stdout.Write(buf[:count]); failed != nil {
				return errBroken("standard output can't be written: ", failed)
			}
			select {
			case n.came <- struct{}{}:
			default:
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			return nil
		default:
			return errBroken("the connection broke off: ", err)
		}
	}
}

func errBroken(what string, err error) error {
	return &localapi.Error{Code: localapi.CodeOffline, Message: what + err.Error()}
}

// isTerminal tells whether a person types there, who will not say that there is no more to come.
func isTerminal(r io.Reader) bool {
	f, ok := r.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// closeOutput tells whoever reads standard output that there is no more.
func closeOutput(w io.Writer) {
	if c, ok := w.(io.Closer); ok {
		c.Close()
	}
}
