// SPDX-License-Identifier: Apache-2.0

// Package magicdns is the node's DNS server: it answers for the overlay's own
// names and forwards every other question to the resolvers that the system had.
//
// Own names. The zone (<network>.internal) and the reverse zone of the network's
// /48 are answered with authority, from the last [State] alone:
//   - <agent>.<zone> and the apex (the node's service address) have AAAA,
//     addresses have PTR, _<service>.<agent>.<zone> has SVCB (RFC 9460) and TXT,
//     both apexes have SOA and NS;
//   - other types of names that exist give NODATA, names that don't NXDOMAIN,
//     each with the SOA (RFC 2308); zone transfers are refused;
//   - ANY gives one set of records (RFC 8482);
//   - an agent that isn't in the State doesn't exist.
//
// Single labels are looked up in the zone and never leave the machine. Nor do
// localhost names (RFC 6761) and questions of type ANY.
//
// Messages. EDNS0 (RFC 6891) with at most 1232 bytes over UDP, BADVERS for other
// versions; TC where an answer doesn't fit; TCP with pipelining, answers in the
// order in which they get ready (RFC 7766); only QUERY, one question, class IN.
//
// Forwarding. A fresh ID and source port for each question, the question compared
// in the answer (RFC 5452); UDP, then TCP where it was truncated; the next
// upstream after two seconds or a failure, and one that failed is asked last for
// a while. Equal questions that come in meanwhile wait for the one that is out:
// this also ends a loop, since a question that comes back is never sent again.
// Answers are cached, negative ones too, for at most an hour. Client options
// (subnet, cookies) stop here. Where there is a [Gate], only names that it lets through are
// forwarded, and of the answers nothing but the records that were asked for, without addresses that it refuses. Without an answer the client gets SERVFAIL with an
// extended error (RFC 8914) that says why.
package magicdns
