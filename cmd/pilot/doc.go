// SPDX-License-Identifier: Apache-2.0

// Command pilot is the one binary of the network: the commands that people and programs type, and the daemon behind them.
//
// Each command has a file of its own. A command asks the daemon over its local socket (package node/localapi) and prints
// what it answers: text for people, or with --json the very types of that package. Whatever fails is a *localapi.Error,
// whose code decides the exit status. Text that the daemon hands on may come from other agents, so nothing of it reaches a
// terminal before safe or quoted took its control characters away.
package main
