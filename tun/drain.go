// SPDX-License-Identifier: Apache-2.0

//go:build darwin || windows

package tun

import wgtun "golang.zx2c4.com/wireguard/tun"

// drain takes the library's link events off its hands, which would stand still when nobody read them. The goroutine
// ends when the device closes its channel; the function returned waits for that.
func drain(dev wgtun.Device) (wait func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range dev.Events() {
		}
	}()
	return func() { <-done }
}
