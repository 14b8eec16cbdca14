// SPDX-License-Identifier: Apache-2.0

package platform

// children are what the test binary does when a test starts it again with such a first argument.
var children = map[string]func(args []string) int{}
