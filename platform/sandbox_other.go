// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package platform

import (
	"os"
	"syscall"
)

// Control is one end of the socket between a sandbox and who has started it.
type Control struct{}

// Send does nothing.
func (*Control) Send([]byte, *os.File) error { return ErrUnsupported }

// Receive returns nothing.
func (*Control) Receive() ([]byte, *os.File, error) { return nil, nil, ErrUnsupported }

// Close does nothing.
func (*Control) Close() error { return nil }

// Sandbox is the first process of a sandbox.
type Sandbox struct{ *Control }

// StartSandbox fails: only Linux has what it takes.
func StartSandbox(_, _ []string) (*Sandbox, error) { return nil, ErrUnsupported }

// Wait fails.
func (*Sandbox) Wait() (int, error) { return 0, ErrUnsupported }

// Kill does nothing.
func (*Sandbox) Kill() {}

// Signal fails.
func (*Sandbox) Signal(syscall.Signal) error { return ErrUnsupported }

// SandboxControl fails.
func SandboxControl() (*Control, error) { return nil, ErrUnsupported }

// SealSandbox fails.
func SealSandbox(_, _ []string) error { return ErrUnsupported }

// RunSandboxed fails.
func RunSandboxed(*Control, string, []string, []string) (int, error) { return 0, ErrUnsupported }

// ConfigureSandbox fails.
func ConfigureSandbox(SandboxLink) error { return ErrUnsupported }

// ShowSandbox fails.
func ShowSandbox(SandboxView) ([]string, error) { return nil, ErrUnsupported }

// WhyNoNamespaces knows nothing.
func WhyNoNamespaces() string { return "only Linux has them" }

// HostSockets knows none.
func HostSockets([]string) []string { return nil }

// Hold fails.
func (*Sandbox) Hold() error { return ErrUnsupported }

// TerminalSignals is false: nothing is forwarded here.
func TerminalSignals() bool { return false }
