// SPDX-License-Identifier: Apache-2.0

package platform

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
}

// noService is the answer where the system has no service of ours.
type noService struct{}

func (noService) Installed() bool { return false }
func (noService) Start() error    { return ErrUnsupported }
func (noService) Stop() error     { return ErrUnsupported }
func (noService) Running() bool   { return false }
