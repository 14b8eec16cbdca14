// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/pilot-protocol/pilot/node/splice"
)

// streamProtocol is what a connection is upgraded to by connect.
const streamProtocol = "pilot-stream"

// halfLimit is how long a stream lasts on which nothing moves and one side has said all: the caller may have gone, which
// looks the same on a local socket.
const halfLimit = 15 * time.Minute

// ConnectRequest asks for a connection to another agent, from this one's address.
type ConnectRequest struct {
	Protocol string        `json:"protocol,omitempty"` // tcp or udp; empty: tcp
	Host     string        `json:"host"`               // name or address
	Port     uint16        `json:"port"`
	Timeout  time.Duration `json:"timeout,omitempty"` // nanoseconds; 0: 30 s
}

// Connector connects to other agents.
type Connector interface {
	// Connect returns a connection with CloseWrite, or for udp one whose reads and writes are datagrams.
	Connect(context.Context, ConnectRequest) (net.Conn, error)
}

// Connect asks the daemon for a connection to another agent. The connection has CloseWrite where the local socket has.
// Over udp each Read and Write is a datagram.
func (c *Client) Connect(ctx context.Context, r ConnectRequest) (net.Conn, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+host+"/v1/connect", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	c.introduce(req)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", streamProtocol)
	conn, err := c.opts.Dial(ctx)
	if err != nil {
		return nil, noAnswer(ctx, err)
	}
	// Not by http.Client: what that returns can't be closed by half.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // on a local socket it can't fail
	buffered := bufio.NewReader(conn)
	resp, err := upgrade(req, conn, buffered)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, noAnswer(ctx, err)
	}
	if err := c.compare(req.URL.Path, resp.Header.Get(VersionHeader)); err != nil {
		conn.Close()
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer conn.Close()
		return nil, refusal(resp)
	}
	stream := net.Conn(&stream{Conn: conn, r: buffered})
	if r.Protocol == "udp" {
		return Datagrams(stream), nil
	}
	return stream, nil
}

func upgrade(req *http.Request, conn net.Conn, r *bufio.Reader) (*http.Response, error) {
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	return http.ReadResponse(r, req)
}

// refusal is the error that the daemon answered with.
func refusal(resp *http.Response) error {
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return errCutOff()
	}
	if err := answered(resp, raw); err != nil {
		return err
	}
	return &Error{Code: CodeVersionDiffers, Message: "the daemon answered " + resp.Status + " to a request for a connection", Hint: hintVersion}
}

// stream is a connection of which some was read already.
type stream struct {
	net.Conn
	r io.Reader
}

func (s *stream) Read(b []byte) (int, error) { return s.r.Read(b) }

// CloseWrite says that no more will be sent.
func (s *stream) CloseWrite() error {
	if w, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}

// connect answers POST /v1/connect: once the other agent has accepted, the connection is a stream to it. Errors come before, as
// of all requests.
func (s *Server) connect(w http.ResponseWriter, r *http.Request) {
	var q ConnectRequest
	if err := decode(r, &q); err != nil {
		fail(w, err)
		return
	}
	if !strings.EqualFold(r.Header.Get("Upgrade"), streamProtocol) {
		fail(w, &Error{Code: CodeUsage, Message: "connect needs the header Upgrade: " + streamProtocol})
		return
	}
	if !s.streams.begin() {
		fail(w, &Error{Code: CodeNotRunning, Message: "the daemon is ending", Hint: "start it with: pilot up"})
		return
	}
	defer s.streams.running.Done()
	far, err := s.opts.Connector.Connect(r.Context(), q)
	if err != nil {
		fail(w, err)
		return
	}
	near, err := hijack(w, s.opts.Version)
	if err != nil {
		far.Close()
		fail(w, err)
		return
	}
	if q.Protocol == "udp" {
		near = Datagrams(near)
	}
	// How it ends is told to both ends by how they are closed.
	_ = s.splicer.Join(s.streams.ctx, near, far, splice.Options{Datagrams: q.Protocol == "udp", Half: halfLimit})
}

func hijack(w http.ResponseWriter, version string) (net.Conn, error) {
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, err
	}
	const head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + streamProtocol + "\r\n" + VersionHeader + ": "
	if _, err := io.WriteString(conn, head+version+"\r\n\r\n"); err != nil {
		conn.Close()
		return nil, err
	}
	return &stream{Conn: conn, r: buffered}, nil
}
