// SPDX-License-Identifier: Apache-2.0

// Package coordinator is the service that admits agents to a network and tells them about each other: join keys, names,
// consents, records of where an agent can be reached, revocations, and one stream of changes per agent. It never carries
// the agents' traffic, and what it says about an agent it passes on as statements signed by others' keys.
//
// A coordinator holds no state of its own: each request reads and writes the registry in package store, and the streams
// are fed by the registry's watchers. So any number of coordinators, each with the authority key, can share one registry.
package coordinator
