// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"strconv"
	"strings"
)

// utunName maps a wished name to what macOS accepts: utun with a number, or "utun" for the next free one.
func utunName(name string) string {
	if digits, ok := strings.CutPrefix(name, "utun"); ok {
		if n, err := strconv.ParseUint(digits, 10, 16); err == nil && strconv.FormatUint(n, 10) == digits {
			return name
		}
	}
	return "utun"
}
