// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"io"
	"log/slog"
)

// Service is the system's own way of running the daemon.
type Service interface {
	// Installed says whether the system knows the service; without it Start and Stop are ErrUnsupported.
	Installed() bool
	// Start returns when the service has started, or its error: one of os.ErrPermission where this user may not.
	Start() error
	// Stop returns when the service has ended, or its error, as Start does.
	Stop() error
	// Running says whether it runs or is about to.
	Running() bool
	// Log says where a person finds what the service had to say.
	Log() string
	// Host is what a process has to go through that the service manager started and wants to talk to; nil where the manager
	// wants no such thing. In a process that it did not start, Run fails.
	Host() ServiceHost
}

// ServiceHost is the inside of a service whose manager wants to be told, and tells, by calls instead of by signals.
type ServiceHost interface {
	// OpenLog opens what takes the place of standard error, which leads nowhere: a file, and a handler for the system's
	// own log, which takes warnings and errors only.
	OpenLog() (io.WriteCloser, slog.Handler, error)
	// Recover asks the manager to start the service again when it fails.
	Recover() error
	// Run runs the daemon until it ends, or the manager wants it to: then its context ends. It calls ready when it can be
	// used. The error is the daemon's; the manager is told that there was one, and starts it again.
	Run(ctx context.Context, daemon func(ctx context.Context, ready func()) error) error
}

// noService is the answer where the system has no service of ours.
type noService struct{}

func (noService) Installed() bool   { return false }
func (noService) Start() error      { return ErrUnsupported }
func (noService) Stop() error       { return ErrUnsupported }
func (noService) Running() bool     { return false }
func (noService) Log() string       { return "" }
func (noService) Host() ServiceHost { return nil }
