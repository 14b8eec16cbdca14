// SPDX-License-Identifier: Apache-2.0

package platform

// DNSEnvironment is what ChooseDNS would decide by now. Nothing is changed.
func DNSEnvironment() Environment { return lookAround("/etc/resolv.conf", nil) }
