// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package platform

import "io"

// ServeDNS is ErrUnsupported: on this system the daemon tells the system's resolver itself.
func ServeDNS(io.ReadWriter, Options) error { return ErrUnsupported }
