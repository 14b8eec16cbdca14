// SPDX-License-Identifier: Apache-2.0

package portmap

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/huin/goupnp"
	"github.com/huin/goupnp/dcps/internetgateway2"
	"github.com/huin/goupnp/httpu"
	"github.com/huin/goupnp/ssdp"
)

const (
	// maxDescription bounds what a gateway may say about itself, in bytes.
	maxDescription = 1 << 20
	description    = "pilot"
	// searchTarget is what all Internet gateways with a translator are, whatever else they are.
	searchTarget = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"
)

// upnp asks by UPnP. Anybody in the local network can answer a search: nothing is fetched but from the gateway itself.
type upnp struct {
	port   uint16
	search func(ctx context.Context, local netip.Addr) ([]*url.URL, error)
	found  connection // nil: none yet
	at     netip.Addr // the gateway that it belongs to
}

// connection is a gateway's service, of either version.
type connection interface {
	AddPortMappingCtx(ctx context.Context, remoteHost string, externalPort uint16, protocol string, internalPort uint16,
		internalClient string, enabled bool, description string, lease uint32) error
	DeletePortMappingCtx(ctx context.Context, remoteHost string, externalPort uint16, protocol string) error
	GetExternalIPAddressCtx(ctx context.Context) (string, error)
}

func (u *upnp) request(ctx context.Context, gateway netip.Addr, last Mapping, lifetime time.Duration) (Mapping, error) {
	ctx, cancel := context.WithTimeout(ctx, searchLimit)
	defer cancel()
	if lifetime == 0 {
		if u.found == nil {
			return Mapping{}, nil
		}
		return Mapping{}, u.found.DeletePortMappingCtx(ctx, "", last.External.Port(), "UDP")
	}
	local, err := localFor(gateway, u.port)
	if err != nil {
		return Mapping{}, fmt.Errorf("UPnP: %w", err)
	}
	if u.found == nil || u.at != gateway {
		if u.found, err = u.find(ctx, gateway, local); err != nil {
			return Mapping{}, fmt.Errorf("UPnP: %w", err)
		}
		u.at = gateway
	}
	got, err := u.add(ctx, local, last, lifetime)
	if err != nil {
		u.found = nil // look for it anew next time
		return Mapping{}, fmt.Errorf("UPnP: %w", err)
	}
	return got, nil
}

// add asks for the port of the last mapping, for our own, and for a few others, as gateways say no to what is taken.
func (u *upnp) add(ctx context.Context, local netip.Addr, last Mapping, lifetime time.Duration) (Mapping, error) {
	text, err := u.found.GetExternalIPAddressCtx(ctx)
	if err != nil {
		return Mapping{}, err
	}
	public, err := netip.ParseAddr(strings.TrimSpace(text))
	if err != nil {
		return Mapping{}, fmt.Errorf("%w: it has no outer address", errRefused)
	}
	ports := []uint16{u.port, u.port + 1000, u.port + 2000}
	if last.Protocol == UPnP {
		ports = append([]uint16{last.External.Port()}, ports...)
	}
	for _, external := range ports {
		if external == 0 {
			continue
		}
		m := Mapping{Protocol: UPnP, External: netip.AddrPortFrom(public.Unmap(), external), Expires: time.Now().Add(lifetime)}
		err = u.found.AddPortMappingCtx(ctx, "", external, "UDP", u.port, local.String(), true, description, uint32(lifetime/time.Second))
		if err == nil {
			return m, nil
		}
		// Some take mappings without an end only, and say so in various ways (725 of the specification's).
		if u.found.AddPortMappingCtx(ctx, "", external, "UDP", u.port, local.String(), true, description, 0) == nil {
			m.Expires = time.Time{}
			return m, nil
		}
	}
	return Mapping{}, fmt.Errorf("%w: %w", errRefused, err)
}

// find looks for the gateway's service.
func (u *upnp) find(ctx context.Context, gateway, local netip.Addr) (connection, error) {
	places, err := u.search(ctx, local)
	if err != nil {
		return nil, err
	}
	client := onlyTo(gateway)
	err = errors.New("no Internet gateway answers")
	for _, at := range places {
		var root *goupnp.RootDevice
		if root, err = describe(ctx, client, gateway, at); err != nil {
			continue
		}
		if c := service(root, at, client); c != nil {
			return c, nil
		}
		err = errors.New("the gateway forwards no ports")
	}
	return nil, err
}

// search asks the local network for Internet gateways, and returns where they describe themselves.
func search(ctx context.Context, local netip.Addr) ([]*url.URL, error) {
	c, err := httpu.NewHTTPUClientAddr(local.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	const patience = 1500 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	answers, err := ssdp.RawSearch(ctx, c, searchTarget, 2) //nolint:bodyclose // datagrams: there is no connection to give back
	if err != nil {
		return nil, err
	}
	var places []*url.URL
	for _, a := range answers {
		if at, err := a.Location(); err == nil {
			places = append(places, at)
		}
	}
	return places, nil
}

// onlyTo returns a client that connects to the gateway and nowhere else, whatever a URL says.
func onlyTo(gateway netip.Addr) *http.Client {
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		to, err := netip.ParseAddrPort(addr)
		if err != nil || to.Addr().Unmap() != gateway {
			return nil, fmt.Errorf("%q is not the gateway", addr)
		}
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
	return &http.Client{
		Timeout:       searchLimit,
		Transport:     bounded{&http.Transport{DialContext: dial, DisableKeepAlives: true, MaxResponseHeaderBytes: 32 << 10}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// bounded cuts answers that are too long.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxDescription), resp.Body}
	}
	return resp, err
}

// describe fetches what the gateway says about itself.
func describe(ctx context.Context, client *http.Client, gateway netip.Addr, at *url.URL) (*goupnp.RootDevice, error) {
	if at.Scheme != "http" || at.Hostname() != gateway.String() {
		return nil, fmt.Errorf("%q is not the gateway", at.Host)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	return parseDescription(data, at)
}

func parseDescription(data []byte, at *url.URL) (*goupnp.RootDevice, error) {
	root := new(goupnp.RootDevice)
	d := xml.NewDecoder(bytes.NewReader(data))
	d.DefaultSpace = goupnp.DeviceXMLNamespace
	if err := d.Decode(root); err != nil {
		return nil, fmt.Errorf("the gateway's description: %w", err)
	}
	base := at
	if root.URLBaseStr != "" {
		var err error
		if base, err = url.Parse(root.URLBaseStr); err != nil {
			return nil, fmt.Errorf("the gateway's description: %w", err)
		}
	}
	root.SetURLBase(base)
	return root, nil
}

// service returns the service for port mappings that a device has, nil if it has none.
func service(root *goupnp.RootDevice, at *url.URL, client *http.Client) connection {
	if c, err := internetgateway2.NewWANIPConnection2ClientsFromRootDevice(root, at); err == nil && len(c) > 0 {
		c[0].SOAPClient.HTTPClient = *client
		return c[0]
	}
	if c, err := internetgateway2.NewWANIPConnection1ClientsFromRootDevice(root, at); err == nil && len(c) > 0 {
		c[0].SOAPClient.HTTPClient = *client
		return c[0]
	}
	if c, err := internetgateway2.NewWANPPPConnection1ClientsFromRootDevice(root, at); err == nil && len(c) > 0 {
		c[0].SOAPClient.HTTPClient = *client
		return c[0]
	}
	return nil
}
