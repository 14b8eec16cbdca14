// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"fmt"

	"golang.org/x/mod/semver"
)

// VersionHeader is in each answer of the daemon, and in each request of this client: the version of the program.
const VersionHeader = "Pilot-Version"

// VersionsDiffer is how far apart two versions are.
type VersionsDiffer int

// Within a major version programs understand each other; of another minor version, one may not know what the other can.
const (
	VersionsSame  VersionsDiffer = iota // also where one of them is none, as of a build from no release
	VersionsMinor                       // the older one lacks something
	VersionsMajor                       // they don't understand each other
)

// CompareVersions compares two of the form v1.2.3.
func CompareVersions(a, b string) VersionsDiffer {
	switch {
	case !semver.IsValid(a), !semver.IsValid(b):
		return VersionsSame
	case semver.Major(a) != semver.Major(b):
		return VersionsMajor
	case semver.MajorMinor(a) != semver.MajorMinor(b):
		return VersionsMinor
	}
	return VersionsSame
}

// checkVersion refuses a daemon of another major version.
func checkVersion(own, daemon string) *Error {
	if CompareVersions(own, daemon) != VersionsMajor {
		return nil
	}
	e := &Error{Code: CodeVersionDiffers, Message: fmt.Sprintf("this is pilot %s, and the daemon that runs is %s: they don't understand each other", own, daemon),
		Hint: "restart the daemon with this version: sudo systemctl restart pilot; without a service: pilot down, then pilot up"}
	if semver.Compare(own, daemon) < 0 {
		e.Hint = "this program is the older one: install the newer pilot; an old copy may come first in PATH"
	}
	return e
}
