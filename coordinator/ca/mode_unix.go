// SPDX-License-Identifier: Apache-2.0

//go:build unix

package ca

import "io/fs"

// exposed reports whether somebody beside the owner may read the file.
func exposed(mode fs.FileMode) bool { return mode.Perm()&0o077 != 0 }
