// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"strconv"
	"strings"

	wgtun "golang.zx2c4.com/wireguard/tun"
)

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

// utunName maps a wished name to what macOS accepts: utun with a number, or "utun" for the next free one.
func utunName(name string) string {
	if digits, ok := strings.CutPrefix(name, "utun"); ok {
		if n, err := strconv.ParseUint(digits, 10, 16); err == nil && strconv.FormatUint(n, 10) == digits {
			return name
		}
	}
	return "utun"
}
