// SPDX-License-Identifier: Apache-2.0

// Package api is the control protocol between a node and a coordinator: its types, its errors and its client.
//
// The protocol is HTTP/1.1 with JSON over TLS 1.3. The server's certificate counts only if the network's authority key
// signed it, whatever its names say; the client proves its identity key with a self-signed certificate in the same
// handshake. Everything that one agent must believe about another travels as a signed statement of package identity,
// in the bytes that were signed, so that a reader checks it itself and the coordinator needn't be trusted with it.
package api
