// SPDX-License-Identifier: Apache-2.0

// Package localapi is the interface between programs on this host and the pilot daemon: HTTP and JSON over a local socket.
//
// The daemon serves it to root, to its own user and to members of the group "pilot", told apart by the socket itself. A request
// with an Origin header, or with another Host than "pilot", is refused, so that no web page reaches it through a browser.
//
//	GET    /v1/status          Status
//	POST   /v1/up              UpRequest      → UpResult      returns when the network is usable
//	POST   /v1/down                           → DownResult    the daemon ends afterwards
//	POST   /v1/ping            PingRequest    → PingResult    one echo
//	POST   /v1/netcheck                       → Netcheck      takes some seconds
//	POST   /v1/invites         InviteRequest  → InviteResult
//	GET    /v1/agents                         → AgentList
//	GET    /v1/trust                          → TrustList
//	POST   /v1/trust           TrustRequest   → TrustEntry
//	GET    /v1/whois?q=…                      → Agent
//	GET    /v1/diagnosis                      → Diagnosis     latest lines of the log, goroutines
//	GET    /v1/proxies                        → Proxies
//	GET    /v1/serve                          → ServeList
//	POST   /v1/serve           ServeRequest   → ServeList     what the request was about
//	POST   /v1/connect         ConnectRequest → a stream      see below
//	GET    /v1/local                          → LocalList     the daemon's agents besides its own
//	POST   /v1/local           LocalRequest   → LocalAgent    makes one, which belongs to the caller
//	DELETE /v1/local/{name}                   → LocalAgent    ends it for good
//	GET    /v1/keys                           → KeysStatus    where the keys are
//	POST   /v1/keys            KeysMove       → KeysStatus
//	GET    /metrics            Prometheus text format
//
// Each answer has the header Pilot-Version, with the daemon's version. Within a major version daemon and clients understand
// each other. A request with the header Pilot-Acting-As is for the agent of this daemon that it names, if that belongs to
// the caller. Errors have a status of 4xx or 5xx and the body {"error":{"code":…,"message":…,"hint":…,"suggestion":…}}.
//
// connect wants the headers "Connection: Upgrade" and "Upgrade: pilot-stream". Once the other agent has accepted it is
// answered with 101, and from then on the connection carries what is sent to the other agent and what comes from it: for tcp
// the bytes as they are, each direction closed on its own; for udp datagrams, each with its length in two bytes in front,
// the higher one first.
package localapi

import (
	"net/netip"
	"time"

	"github.com/pilot-protocol/pilot/identity"
)

// States of a daemon.
const (
	StateDown     = "down"     // the daemon runs, and no network is up
	StateStarting = "starting" // it has one and is not usable yet
	StateUp       = "up"
)

// How packets get to programs.
const (
	TUNAuto      = "auto"      // in a request: by an interface where that can be had, else in userspace
	TUNKernel    = "kernel"    // by an interface of the kernel's
	TUNUserspace = "userspace" // by a stack in the daemon: programs go through its proxies, or embed a node
)

// UpRequest asks the daemon to join a network, to make one, or to go on with the one it has.
type UpRequest struct {
	Name              string `json:"name,omitempty"`               // wished name; empty: the host's, or the one it has
	Network           string `json:"network,omitempty"`            // name of a network to make; empty: "pilot"
	Invite            string `json:"invite,omitempty"`             // secret
	CoordinatorListen string `json:"coordinator_listen,omitempty"` // host:port of the coordinator of a new network
	// AvoidJurisdictions are those whose relays must not carry this node's traffic, in place of those that were named before;
	// nil leaves them, and one empty string avoids none any more.
	AvoidJurisdictions []string `json:"avoid_jurisdictions,omitempty"`
	// Relay says what kind of relay the coordinator on this host is, in place of what was said before; nil leaves it.
	Relay *HostedRelay `json:"relay,omitempty"`
	// TUN is TUNAuto, TUNKernel or TUNUserspace; empty: as before, the first time TUNAuto.
	TUN string `json:"tun,omitempty"`
	// SOCKS5 and HTTPProxy are host:port of proxies for this host's programs, on a loopback address, or ProxyOff; empty: as
	// before, the first time a free port of 127.0.0.1 in userspace mode, and none with an interface.
	SOCKS5    string `json:"socks5,omitempty"`
	HTTPProxy string `json:"http_proxy,omitempty"`
	// ProxyDirect lets the internet be reached through them too; nil: as before.
	ProxyDirect *bool `json:"proxy_direct,omitempty"`
}

// ProxyOff says that there shall be no such proxy.
const ProxyOff = "off"

// Proxies are where this host's programs are let into the network.
type Proxies struct {
	SOCKS5 string `json:"socks5,omitempty"` // URL with a password; secret
	HTTP   string `json:"http,omitempty"`   // URL with a password; secret
	Direct bool   `json:"direct,omitempty"` // the internet is reached through them too
}

// HostedRelay says what kind of relay a coordinator is beside. It counts from the coordinator's next start on.
type HostedRelay struct {
	Off          bool   `json:"off,omitempty"`  // it is none
	Name         string `json:"name,omitempty"` // empty: one is made of its key
	Region       string `json:"region,omitempty"`
	Jurisdiction string `json:"jurisdiction,omitempty"`
}

// UpResult says what the host is now part of.
type UpResult struct {
	Network      string               `json:"network"`
	Zone         string               `json:"zone"`
	Name         string               `json:"name"`
	FQDN         string               `json:"fqdn"`
	Address      netip.Addr           `json:"address"`
	Key          identity.AgentPublic `json:"key"`
	Created      bool                 `json:"created"`          // the network was made by this call
	Joined       bool                 `json:"joined"`           // the network was joined by this call
	Hosted       bool                 `json:"hosted"`           // this host is the coordinator
	Coordinators []string             `json:"coordinators"`     // host:port
	Invite       string               `json:"invite,omitempty"` // of a new network, one use, 24 h; secret
	Inviter      string               `json:"inviter,omitempty"`
	TUN          string               `json:"tun"`               // kernel or userspace
	TUNWhy       string               `json:"tun_why,omitempty"` // why userspace was chosen
	SOCKS5       string               `json:"socks5,omitempty"`  // host:port of the proxy for programs of this host
	HTTPProxy    string               `json:"http_proxy,omitempty"`
	Warnings     []string             `json:"warnings,omitempty"`
}

// RunResult is what pilot run says at its end.
type RunResult struct {
	Name       string `json:"name"`        // of the agent
	ExitStatus int    `json:"exit_status"` // of the program
	Egress     Egress `json:"egress"`
}

// DownResult is the answer to down.
type DownResult struct {
	PID int `json:"pid"` // of the daemon that is ending
}

// Status is everything that `pilot status` shows.
type Status struct {
	State       string            `json:"state"`
	Version     string            `json:"version"`
	PID         int               `json:"pid"`
	Network     string            `json:"network,omitempty"`
	Zone        string            `json:"zone,omitempty"`
	Authority   string            `json:"authority,omitempty"`
	Self        *Self             `json:"self,omitempty"`
	Coordinator *CoordinatorState `json:"coordinator,omitempty"`
	Peers       []PeerStatus      `json:"peers"`
	Served      []Served          `json:"served,omitempty"`   // published ports
	Pending     int               `json:"pending"`            // trust requests that wait for a decision here
	Drops       map[string]uint64 `json:"drops,omitempty"`    // packets dropped, by reason
	Problems    []Problem         `json:"problems,omitempty"` // what keeps the node from working fully
	Egress      *Egress           `json:"egress,omitempty"`   // of the program of pilot run
}

// Egress is what the program of a sandbox may reach outside of its network, and what became of that.
type Egress struct {
	Rules    []string  `json:"rules"`          // none: nothing
	Active   int       `json:"active"`         // connections and flows of datagrams now
	Accepted uint64    `json:"accepted"`       // so far
	Refused  uint64    `json:"refused"`        // by the rules, names too
	Last     []Refusal `json:"last,omitempty"` // what was refused last, the latest first
}

// Refusal is something outside that a program wanted and must not reach.
type Refusal struct {
	Kind   string    `json:"kind"`   // dns, tcp or udp
	Target string    `json:"target"` // a name, or address:port; as the program had it
	Why    string    `json:"why"`
	Count  uint64    `json:"count"` // how often
	Time   time.Time `json:"time"`  // when last
}

// Self is the agent of this node.
type Self struct {
	Name               string               `json:"name"`
	FQDN               string               `json:"fqdn"`
	Address            netip.Addr           `json:"address"`
	Key                identity.AgentPublic `json:"key"`
	Tags               []string             `json:"tags,omitempty"`
	CertificateExpires time.Time            `json:"certificate_expires"`
	Interface          string               `json:"interface"`
	TUN                string               `json:"tun"`               // kernel or userspace
	TUNWhy             string               `json:"tun_why,omitempty"` // why userspace was chosen
	SOCKS5             string               `json:"socks5,omitempty"`  // host:port of the proxy for programs of this host
	HTTPProxy          string               `json:"http_proxy,omitempty"`
	ProxyDirect        bool                 `json:"proxy_direct,omitempty"` // the internet is reached through them too
	Port               uint16               `json:"port"`                   // UDP
	Endpoints          []Endpoint           `json:"endpoints,omitempty"`    // in the order in which peers should try
	NAT                *NAT                 `json:"nat,omitempty"`
	Relays             []RelayStatus        `json:"relays,omitempty"`              // all of the network's, home first
	AvoidJurisdictions []string             `json:"avoid_jurisdictions,omitempty"` // their relays are not used
	DNS                string               `json:"dns"`                           // how names are resolved here: resolved, resolvconf, file, none
}

// Endpoint is an address at which peers may reach this node.
type Endpoint struct {
	Addr netip.AddrPort `json:"addr"`
	Kind string         `json:"kind"` // "host": an interface has it; "reflexive": relays see the node there; "mapped": the gateway forwards it
}

// NAT is what is known of the translators and filters between this host and others, in the words of RFC 4787: unknown,
// none, endpoint-independent, address-dependent, address-and-port-dependent.
type NAT struct {
	Mapping   string `json:"mapping"`
	Filtering string `json:"filtering"`
}

// RelayStatus is a relay as this node sees it.
type RelayStatus struct {
	Name         string    `json:"name"`
	Region       string    `json:"region,omitempty"`
	Jurisdiction string    `json:"jurisdiction,omitempty"`
	Home         bool      `json:"home,omitempty"`      // peers find this node there
	Connected    bool      `json:"connected,omitempty"` // it forwards for this node now
	Transport    string    `json:"transport,omitempty"` // "udp", "tls" or "proxy" (TLS through an HTTP proxy)
	RTT          float64   `json:"rtt_ms,omitempty"`
	Since        time.Time `json:"since,omitzero"` // of the connection
	Avoided      bool      `json:"avoided,omitempty"`
	Error        string    `json:"error,omitempty"` // why it is not connected
}

// CoordinatorState says how the node stands with its coordinator.
type CoordinatorState struct {
	Addresses []string  `json:"addresses"`
	Hosted    bool      `json:"hosted"`
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since"` // of the present state
	Error     string    `json:"error,omitempty"`
	NextTry   time.Time `json:"next_try,omitzero"`
	Code      string    `json:"code,omitempty"` // of the error
	// ClockOffset is by how much the coordinator's clock is ahead of this host's, as of its latest answer; it tells whole seconds.
	ClockOffset *float64 `json:"clock_offset_s,omitempty"`
}

// Problem is something that needs a look.
type Problem struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// States of a peer.
const (
	PeerConnected = "connected" // a session is open
	PeerIdle      = "idle"      // reachable as far as is known; no session now
	PeerTrying    = "trying"    // a handshake is under way
	PeerOffline   = "offline"   // it does not answer, or the coordinator says that it is gone
	PeerPending   = "pending"   // a consent is missing
	PeerRefused   = "refused"   // it was revoked, its key changed, or a consent was taken back
)

// Kinds of paths.
const (
	PathDirect = "direct"
	PathRelay  = "relay"
)

// PathStatus is one way to a peer.
type PathStatus struct {
	Path   string    `json:"path"` // as people read it: "direct 192.0.2.7:7745", "relay eu-1"
	Kind   string    `json:"kind"` // PathDirect or PathRelay
	Relay  string    `json:"relay,omitempty"`
	State  string    `json:"state"` // "unknown", "probing", "proved", "suspect" or "dead"
	InUse  bool      `json:"in_use,omitempty"`
	RTT    float64   `json:"rtt_ms,omitempty"`
	Proved time.Time `json:"proved,omitzero"` // when it was last known to work both ways
}

// PeerStatus is one peer as this node sees it.
type PeerStatus struct {
	Name          string               `json:"name"`
	FQDN          string               `json:"fqdn"`
	Address       netip.Addr           `json:"address"`
	Key           identity.AgentPublic `json:"key"`
	State         string               `json:"state"`
	Problem       *Problem             `json:"problem,omitempty"` // why it is not reachable
	Path          string               `json:"path,omitempty"`    // in use: "direct 192.0.2.7:7745", "relay eu-1"
	PathKind      string               `json:"path_kind,omitempty"`
	Relay         string               `json:"relay,omitempty"` // the relay's name, where the path is over one
	Why           string               `json:"why,omitempty"`   // a stable code for why the path is not direct
	Paths         []PathStatus         `json:"paths,omitempty"` // all that are known, the one in use first
	RTT           float64              `json:"rtt_ms,omitempty"`
	MTU           int                  `json:"mtu,omitempty"` // bytes of the longest packet that travels whole on the path in use; left out while that is looked for
	RxBytes       uint64               `json:"rx_bytes"`
	TxBytes       uint64               `json:"tx_bytes"`
	LastHandshake time.Time            `json:"last_handshake,omitzero"`
}

// PingRequest asks for one echo inside the tunnel.
type PingRequest struct {
	Target  string        `json:"target"`            // name, address or agent key
	Timeout time.Duration `json:"timeout,omitempty"` // nanoseconds; 0: 5 s
}

// PingResult is the echo that came back.
type PingResult struct {
	Name     string     `json:"name"`
	Address  netip.Addr `json:"address"`
	Path     string     `json:"path"` // the one that the answer took: "direct 192.0.2.7:7745", "relay eu-1"
	PathKind string     `json:"path_kind"`
	Relay    string     `json:"relay,omitempty"`
	Why      string     `json:"why,omitempty"` // a stable code for why it is not direct
	RTT      float64    `json:"rtt_ms"`
}

// InviteRequest asks for an invite. Only agents with the tag "admin" may make one.
type InviteRequest struct {
	Uses         int           `json:"uses,omitempty"`    // 0: 1
	Expires      time.Duration `json:"expires,omitempty"` // nanoseconds from now; 0: 24 h
	Tags         []string      `json:"tags,omitempty"`
	Jurisdiction string        `json:"jurisdiction,omitempty"`
	NoTrust      bool          `json:"no_trust,omitempty"` // leave the inviter's consent out
}

// InviteResult is a new invite.
type InviteResult struct {
	Invite  string    `json:"invite"` // secret
	Uses    int       `json:"uses"`
	Expires time.Time `json:"expires"`
	Tags    []string  `json:"tags,omitempty"`
	Trust   bool      `json:"trust"`
}

// Agent is what may be known about an agent.
type Agent struct {
	Name         string               `json:"name"`
	FQDN         string               `json:"fqdn"`
	Address      netip.Addr           `json:"address"`
	Key          identity.AgentPublic `json:"key"`
	Tags         []string             `json:"tags,omitempty"`
	Jurisdiction string               `json:"jurisdiction,omitempty"`
	Trust        string               `json:"trust"` // self, none, requested, pending, mutual, rejected, revoked
	Online       bool                 `json:"online"`
	LastSeen     time.Time            `json:"last_seen,omitzero"`
}

// AgentList is the answer to agents.
type AgentList struct {
	Agents []Agent `json:"agents"`
}

// States of trust between this agent and another.
const (
	TrustSelf      = "self"
	TrustNone      = "none"
	TrustRequested = "requested" // we consented, they have not yet
	TrustPending   = "pending"   // they consented, we have not yet
	TrustMutual    = "mutual"
	TrustRejected  = "rejected" // we or they said no to a request
	TrustRevoked   = "revoked"  // one of the two consents was taken back or has ended
)

// Actions of a TrustRequest.
const (
	ActionRequest = "request" // give our consent, and ask for theirs
	ActionApprove = "approve" // give our consent to one who asked
	ActionReject  = "reject"
	ActionRevoke  = "revoke" // take our consent back
)

// TrustRequest changes what this agent consents to.
type TrustRequest struct {
	Action  string               `json:"action"`
	Target  string               `json:"target"` // name, address or agent key
	Reason  string               `json:"reason,omitempty"`
	Ports   []identity.PortRange `json:"ports,omitempty"`   // what they may open here; empty: all
	Expires time.Duration        `json:"expires,omitempty"` // nanoseconds from now; 0: never
	// AcceptKey accepts a changed key under a known name, after a KEY_MISMATCH.
	AcceptKey identity.AgentPublic `json:"accept_key,omitzero"`
}

// Consent is one direction of trust.
type Consent struct {
	Reason  string               `json:"reason,omitempty"` // the other agent's words, where it is theirs
	Ports   []identity.PortRange `json:"ports,omitempty"`
	Since   time.Time            `json:"since"`
	Expires time.Time            `json:"expires,omitzero"`
	Active  bool                 `json:"active"`
}

// TrustEntry is the trust between this agent and another.
type TrustEntry struct {
	Name    string               `json:"name"`
	Address netip.Addr           `json:"address"`
	Key     identity.AgentPublic `json:"key"`
	State   string               `json:"state"`
	Ours    *Consent             `json:"ours,omitempty"`
	Theirs  *Consent             `json:"theirs,omitempty"`
}

// TrustList is the answer to trust.
type TrustList struct {
	Entries []TrustEntry `json:"entries"`
}
