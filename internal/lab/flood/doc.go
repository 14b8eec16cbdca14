// SPDX-License-Identifier: Apache-2.0

// Package flood sends numbered UDP datagrams at a chosen rate, and counts what arrives. It costs the processors as little
// as a program can: many datagrams for each call of the kernel, as QUIC and media servers do, where iperf3 makes a call
// for each. It is made for Linux.
package flood
