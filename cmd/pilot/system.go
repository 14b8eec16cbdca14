// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"net"

	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/node/sandbox"
	"github.com/pilot-protocol/pilot/platform"
)

// system is what the commands need of the host and of the node, beside the daemon's socket. An error that has a code of
// its own is a *localapi.Error.
type system interface {
	DefaultStateDir() string
	// UserStateDir is where the caller's own daemon keeps its state; empty where that is the system's.
	UserStateDir() string
	SocketPath(stateDir string) string
	Dial(ctx context.Context, socket string) (net.Conn, error)
	// Start runs this program with args in the background, its output appended to logFile, whose folder is made.
	Start(args []string, logFile string) (pid int, err error)
	Service() service
	// Alive reports whether a process exists and has not ended.
	Alive(pid int) bool
	// NewNode makes a node to be run in this process.
	NewNode(stateDir string, log *slog.Logger) (runner, error)
	// Cleanup undoes what a daemon that ended without warning left on the host.
	Cleanup(stateDir string) error
	// Keys says where the keys of a folder are that no daemon uses, and moves them before if to is not empty.
	Keys(stateDir, to string) (localapi.KeysStatus, error)
	// ServeDNS changes the host's DNS settings as it is told over the socket that standard input is, and undoes that when
	// the connection or ctx ends.
	ServeDNS(ctx context.Context, backupDir string, log *slog.Logger) error
	sandboxes
}

// sandboxes are programs that are agents of their own.
type sandboxes interface {
	// RunSandbox runs a program and returns its exit status, and what it wanted outside of its network.
	RunSandbox(context.Context, sandbox.Options) (status int, outside localapi.Egress, err error)
	// SandboxStage sets up the sandbox in which this process is, and becomes its first process.
	SandboxStage(program []string) error
	// SandboxInit runs the program in a sandbox whose first process this is, and returns its exit status.
	SandboxInit(program []string) (status int, err error)
}

// service is the daemon as the system's service manager runs it.
type service interface {
	Installed() bool
	Start() error
	Stop() error
	Running() bool
	// Log says where its log is, for people.
	Log() string
	// Host is nil unless the system's manager wants to be talked to by the service's process.
	Host() platform.ServiceHost
}

// runner is a node.
type runner interface {
	Run(context.Context) error
}
