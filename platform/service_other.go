// SPDX-License-Identifier: Apache-2.0

//go:build !linux && !windows

package platform

// SystemService returns a service that isn't installed: on this system the daemon runs in the background by itself.
func SystemService() Service { return noService{} }
