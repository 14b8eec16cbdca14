// SPDX-License-Identifier: Apache-2.0

// Package pilot makes a program a member of a pilot network: an agent with a permanent address and a name, without root,
// without an interface, and without a daemon beside it.
//
//	node, err := pilot.Up(ctx, pilot.Options{Name: "indexer", Invite: os.Getenv("INVITE")})
//	if err != nil {
//		return err
//	}
//	defer node.Close()
//
//	l, err := node.Listen("tcp", ":80")                      // others reach http://indexer/
//	conn, err := node.DialContext(ctx, "tcp", "planner:80")  // by name, from this agent's address
//	resp, err := node.HTTPClient().Get("http://planner/plan")
//	caller, err := node.WhoIs(conn)                          // a verified name, not a claim
//
// # Identity
//
// Who the agent is lies in its state folder: the key, the certificate, what it consented to. The first Up needs an
// invite, or makes a network where Options.NewNetwork names one; later ones go on with what is there, and an invite that
// was used already does no harm. Two nodes can't use one folder at a time. An address is derived from the agent's key: what
// comes from it was sealed by the owner of that key, which is what makes WhoIs more than a look-up.
//
// # What can be reached
//
// Agents with whom trust is mutual, and nothing else: not this host, not the internet. Names are the agents' own, with
// the network's zone or without: planner, planner.pilot.internal. Errors are those of a kernel's sockets: ECONNREFUSED
// where nobody listens, EACCES where a consent is missing, a *net.DNSError for a name that there isn't. ErrorCode and
// ErrorHint say what a person can do about one.
//
// # Lifetime
//
// A process can have several nodes. A node has a UDP port, goroutines and a userspace TCP/IP stack of its own, all of which
// have ended when Close returns; connections and listeners end with it. Close waits up to a second for other agents to get
// what was written to connections that were closed before; of connections that are still open nothing more is sent. On
// machines with few processors Up raises GOMAXPROCS, since threads that wait for packets hold one each.
//
// A node looks for ways to its peers as a daemon does: it learns its addresses from relays, and asks the gateway to forward
// its UDP port unless Options.NoPortMapping is set. Where UDP is blocked it uses a relay over TLS, through the proxy that
// HTTPS_PROXY names if there is one.
package pilot
