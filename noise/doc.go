// SPDX-License-Identifier: Apache-2.0

// Package noise makes sessions between agents and turns packets into sealed records and back. It is pure: bytes in,
// bytes out, time as an argument; no I/O, no clock, no goroutine. A Machine does handshakes for all agents behind one
// UDP port, a Session seals and opens the records of one tunnel.
//
// # Protocol
//
// The handshake is Noise_IKpsk2_25519 (Noise Protocol Framework, revision 34) with AESGCM and SHA256, or ChaChaPoly and
// BLAKE2s. The static keys are tunnel keys, which the agents' identity keys sign. The payloads carry that statement and
// the membership certificate of each side, so either end can refuse on its own. The psk comes of an ML-KEM-768 exchange
// (FIPS 203) inside the same two messages: to read a recorded session one must break X25519 and ML-KEM both.
// The payload of message 1 comes before that exchange: who calls is hidden by X25519 alone, and only as long as the
// responder's tunnel key stays secret.
//
// The prologue is:
//
//	14  "pilot noise v1"
//	 1  version, 1
//	 1  suite: 1 ChaChaPoly_BLAKE2s, 2 AESGCM_SHA256
//	32  network: the authority's Ed25519 key
//	32  the responder's Ed25519 identity key
//
// All integers are big-endian. Sizes are in bytes. Reserved bytes are zero, and a receiver drops what has others. An index
// is a random number other than 0 by which its owner finds a session or an initiation again.
//
// # Messages
//
// Message 1, initiator to responder, is the first Noise message: 32 ephemeral, 48 sealed static key, then this payload and
// 16 of tag:
//
//	   4  initiator's index, as in the datagrams
//	   8  timestamp: nanoseconds since 1970, at least one more than in any initiation of this process before
//	  32  answer key: random, keys mac1 of message 2
//	1184  ML-KEM-768 encapsulation key, fresh
//	   2  n, length of the tunnel statement, at most 256
//	   2  m, length of the certificate, at most 768
//	   n  tunnel statement
//	   m  membership certificate
//	   p  zeros, up to a message of 2304 bytes
//
// Message 2, responder to initiator, begins with 1088 bytes of ML-KEM ciphertext, outside of Noise. The second Noise
// message follows: 32 ephemeral, then this payload and 16 of tag:
//
//	4  responder's index, as in the datagrams
//	2  n
//	2  m
//	n  tunnel statement
//	m  membership certificate
//
// The psk is HKDF-SHA256 with the ML-KEM shared secret as input, SHA-256(encapsulation key ‖ ciphertext) as salt and "pilot
// noise v1 psk ml-kem-768" as info, 32 bytes. It is mixed in at the end of message 2, before its payload: a changed
// ciphertext breaks the tag.
//
// Suite 2 is used when the initiator's machine has AES instructions and both tunnel statements offer it. It is never
// negotiated: the prologue binds it, a responder drops a suite that its statement doesn't offer, and each side drops a peer
// whose statement does not offer the suite in use.
//
// # Handshake datagrams
//
// A message of L bytes travels in c datagrams of at most 1200 bytes, c from ⌈L/1152⌉ to 3. Each carries L/c bytes, rounded
// up in the first L mod c of them, rounded down in the others. Message 1 takes two datagrams, or three with the largest
// statements; or three because its sender fears for a narrow path: they have at most 832 bytes then. Message 2 takes one or
// two, or three in answer to a message 1 that came in three.
//
//	 1  type: 0x21 message 1, 0x22 message 2
//	 1  version, 1
//	 1  suite
//	 1  part, from 0, times 16, plus c
//	 4  sender's index
//	 4  receiver's index; 0 in message 1
//	 2  L
//	 2  reserved
//	 …  part of the message
//	16  mac1
//	16  mac2, or zeros
//
// With MAC(key, bytes) as the first 16 bytes of BLAKE2s-256(key ‖ BLAKE2s-256(bytes)):
//
//	mac1 of message 1 = MAC(BLAKE2s-256("pilot noise v1 mac1" ‖ responder's tunnel key), all before mac1)
//	mac1 of message 2 = MAC(answer key, all before mac1)
//	mac2 of message 1 = MAC(cookie, all before mac2), zeros without a cookie
//	mac2 of message 2 = zeros
//
// The hash inside the MAC is taken once per datagram, and the rest once per key: by mac1 a responder finds which agent behind
// its port, and which of its tunnel keys, a message is for. Only somebody who knows the tunnel key makes a responder do any
// work, and only the responder itself, who alone can read the answer key, makes an initiator do any.
//
// A responder holds at most 256 unfinished messages, 16 from one source (IPv4 address or IPv6 /64), for 5 seconds; the
// oldest goes when there are more.
//
// # What each side checks
//
// A responder answers only when all of this holds; otherwise it says nothing:
//
//   - mac1 is right, the suite is on offer, under load mac2 is right too;
//   - message 1 decrypts, and its index is the one of the datagrams;
//   - the timestamp is higher than the last one accepted from that tunnel key for that local agent;
//   - the tunnel statement is signed, of this network, valid now, and about the Noise static key;
//   - the certificate is signed by the authority, of this network, valid now, and of the agent that signed the statement;
//   - that agent is not the local agent, and Options.Admit agrees.
//
// An initiator checks the same of message 2, apart from the timestamp, and that the agent is the one it called. "Valid
// now" allows for clocks that are five minutes apart.
//
// A timestamp is remembered until the statement that came with it has expired. An agent whose clock was far ahead and has
// been set right should therefore initiate with a new tunnel key after a restart; its older keys can go on answering.
// A responder that lost its memory by a restart answers a replayed message 1, but the session sends nothing until the
// initiator's first record proves it.
//
// # Load
//
// A responder is under load when more than 200 fragments of message 1 with a right mac1 come per second. Then it answers
// those without a right mac2 with a cookie reply only, which is always smaller than the fragment, and takes at most 20 per
// second from a source that did prove its address:
//
//	 1  type, 0x23
//	 1  version, 1
//	 2  reserved
//	 4  receiver's index: the sender's index of the fragment
//	24  nonce, random
//	32  the cookie (16), sealed by XChaCha20-Poly1305 under BLAKE2s-256("pilot noise v1 cookie" ‖ responder's tunnel key),
//	    with the fragment's mac1 as associated data
//
// The cookie is MAC(secret, source address as 16 bytes ‖ source port as 2). The secret changes every two minutes and the one
// before is honoured still. An initiator uses a cookie for two minutes, in its next initiations for that tunnel key; it
// never sends anything in answer to the cookie reply itself.
//
// Whatever arrives, a responder has never sent to a source more bytes than came from there: message 1 fills at least two
// datagrams (2400 bytes), message 2 with its frames has at most 2264; in three parts they are 2448 and 2312.
//
// # Records
//
//	 1  type, 0x24
//	 1  flags: bit 0 control message, bit 1 packet without its TCP or UDP checksum, bit 2 part of a packet; others are the users' of Session
//	 2  reserved
//	 4  receiver's index
//	 8  counter, from 0, one more for each record of this sender in this session
//	 …  ciphertext
//	16  tag
//
// The keys are those of Noise's Split. The first 16 bytes are associated data. The nonce is the 12 bytes of receiver's index
// and counter as they stand in the header: where Noise's own encoding has four zero bytes in front of the counter, the
// index stands here, which never changes within a session. A receiver authenticates first, and then drops a counter that it
// has seen, or that is 16,320 or more behind the highest.
//
// A responder sends no record before it has opened one; an initiator with nothing to say sends an empty one. The initiator
// makes a new session after 120 seconds; after 180 seconds, or 2^40 records, neither side uses the old one.
package noise
