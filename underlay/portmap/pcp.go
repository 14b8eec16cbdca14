// SPDX-License-Identifier: Apache-2.0

package portmap

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// PCP's MAP request and its answer (RFC 6887, sections 7 and 11). There is no library for it that is looked after.
const (
	pcpVersion  = 2
	pcpMap      = 1
	pcpAnswer   = 0x80
	pcpSize     = 60 // header 24, MAP 36
	pcpUDP      = 17
	pcpSuccess  = 0
	maxLifetime = 24 * time.Hour
)

type pcp struct{ m *Mapper }

func (p *pcp) request(ctx context.Context, gateway netip.Addr, last Mapping, lifetime time.Duration) (Mapping, error) {
	conn, err := net.Dial("udp4", netip.AddrPortFrom(gateway, p.m.port).String())
	if err != nil {
		return Mapping{}, fmt.Errorf("PCP: %w", err)
	}
	defer conn.Close()
	local, _ := conn.LocalAddr().(*net.UDPAddr)
	q := pcpRequest{nonce: p.m.nonce, client: local.AddrPort().Addr(), port: p.m.options.Port, lifetime: lifetime}
	if lifetime > 0 {
		q.suggested = last.External
	}
	answer, err := exchange(ctx, conn, q.append(nil))
	if err != nil {
		return Mapping{}, fmt.Errorf("PCP: %w", err)
	}
	external, granted, err := q.parse(answer)
	if err != nil {
		return Mapping{}, fmt.Errorf("PCP: %w", err)
	}
	return Mapping{Protocol: PCP, External: external, Expires: time.Now().Add(granted)}, nil
}

// exchange sends a request until something comes back, with the pauses doubled.
func exchange(ctx context.Context, conn net.Conn, request []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	end, _ := ctx.Deadline()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 1100) // RFC 6887, section 7: the longest message
	for pause := 250 * time.Millisecond; ; pause *= 2 {
		if _, err := conn.Write(request); err != nil {
			return nil, err
		}
		at := time.Now().Add(pause)
		if at.After(end) {
			at = end
		}
		if err := conn.SetReadDeadline(at); err != nil {
			return nil, err
		}
		n, err := conn.Read(buf)
		if err == nil {
			return buf[:n], nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if e, ok := err.(net.Error); !ok || !e.Timeout() { //nolint:errorlint // as package net returns it
			return nil, err
		}
	}
}

// pcpRequest asks for a UDP port.
type pcpRequest struct {
	nonce     [12]byte
	client    netip.Addr
	port      uint16
	lifetime  time.Duration
	suggested netip.AddrPort // zero: any
}

func (q *pcpRequest) append(b []byte) []byte {
	client, suggested := q.client.As16(), netip.AddrFrom4([4]byte{}).As16()
	if q.suggested.IsValid() {
		suggested = q.suggested.Addr().As16()
	}
	b = append(b, pcpVersion, pcpMap, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(q.lifetime/time.Second))
	b = append(b, client[:]...)
	b = append(b, q.nonce[:]...)
	b = append(b, pcpUDP, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, q.port)
	b = binary.BigEndian.AppendUint16(b, q.suggested.Port())
	return append(b, suggested[:]...)
}

// parse reads the answer to the request.
func (q *pcpRequest) parse(d []byte) (external netip.AddrPort, lifetime time.Duration, err error) {
	if len(d) < 4 || d[0] != pcpVersion || d[1] != pcpMap|pcpAnswer {
		return external, 0, fmt.Errorf("%w: it does not speak this version", errRefused)
	}
	if d[3] != pcpSuccess {
		return external, 0, fmt.Errorf("%w: result %d", errRefused, d[3])
	}
	if len(d) < pcpSize || [12]byte(d[24:36]) != q.nonce || d[36] != pcpUDP || binary.BigEndian.Uint16(d[40:]) != q.port {
		return external, 0, fmt.Errorf("%w: this is no answer to the question", errRefused)
	}
	lifetime = min(time.Duration(binary.BigEndian.Uint32(d[4:]))*time.Second, maxLifetime)
	addr := netip.AddrFrom16([16]byte(d[44:60])).Unmap()
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(d[42:])), lifetime, nil
}
