// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"regexp"
	"strings"
)

// version is where a release stands: a tag, and how many commits after it.
type version struct {
	base   string // three numbers, "1.0.0"
	pre    string // of a tag such as v1.0.0-rc.1: "rc.1"
	after  string // commits since the tag; empty: none
	commit string // of a version between two tags
}

// describe asks git for the tag, and where there is none yet for the number of commits. What no commit has is not
// packed: nobody could build it again.
func describe(ctx context.Context) (string, error) {
	changed, err := output(ctx, "git", "status", "--porcelain", "--untracked-files=no")
	if err != nil {
		return "", err
	}
	if changed != "" {
		return "", fmt.Errorf("files differ from the commit, so that nobody could build the same: commit them first\n%s", changed)
	}
	if tag, err := output(ctx, "git", "describe", "--tags", "--match", "v[0-9]*", "--abbrev=8"); err == nil {
		return tag, nil
	}
	count, err := output(ctx, "git", "rev-list", "--count", "HEAD")
	if err != nil {
		return "", err
	}
	commit, err := output(ctx, "git", "rev-parse", "--short=8", "HEAD")
	if err != nil {
		return "", err
	}
	return "v0.0.0-" + count + "-g" + commit, nil
}

var described = regexp.MustCompile(`^v?(\d+\.\d+\.\d+)(?:-((?:alpha|beta|rc)(?:\.\d+)?))?(?:-(\d+)-g([0-9a-f]+))?$`)

// parseVersion reads what git describe prints. Tags are v1.2.3, or v1.2.3-rc.1 (also alpha, beta).
func parseVersion(text string) (version, error) {
	m := described.FindStringSubmatch(text)
	if m == nil {
		return version{}, fmt.Errorf("the version %q is not like v1.2.3, v1.2.3-rc.1 or v1.2.3-4-g5678abcd", text)
	}
	return version{base: m[1], pre: m[2], after: m[3], commit: m[4]}, nil
}

// String is the version as Semantic Versioning 2.0.0 has it, "1.0.0-rc.1+4.g5678abcd".
func (v version) String() string {
	s := v.base
	if v.pre != "" {
		s += "-" + v.pre
	}
	if v.after != "" {
		s += "+" + v.after + ".g" + v.commit
	}
	return s
}

// of is the version in the words of a package format, in which a preliminary version comes before, and one between two
// tags after its tag; and the release, where the format needs one.
func (v version) of(format string) (version, release string) {
	switch format {
	case "apk": // apk-package(5): suffixes _alpha, _beta, _rc, _p with a number
		version = v.base
		if v.pre != "" {
			version += "_" + strings.ReplaceAll(v.pre, ".", "")
		}
		if v.after != "" {
			version += "_p" + v.after
		}
		return version, "0"
	case "rpm":
		release = "1"
	}
	version = v.base // deb-version(7), rpm-version(7)
	if v.pre != "" {
		version += "~" + v.pre
	}
	if v.after != "" {
		version += "+" + v.after + ".g" + v.commit
	}
	return version, release
}
