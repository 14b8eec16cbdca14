// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

const mainPackage = "github.com/pilot-protocol/pilot/cmd/pilot"

// Binary returns the path of the pilot under test: the one that the environment variable PILOT_BINARY names, or one
// that is built on the first call of each process, with the race detector if PILOT_LAB_RACE is set. It ends the test
// if that fails. [RemoveBinary] deletes what was built.
func Binary(tb TB) string {
	tb.Helper()
	if path := os.Getenv("PILOT_BINARY"); path != "" {
		path, err := filepath.Abs(path)
		if err != nil {
			tb.Fatalf("lab: %v", err)
		}
		return path
	}
	path := filepath.Join(binaryDir(), "pilot")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	if err := build(path); err != nil {
		tb.Fatalf("lab: %v", err)
	}
	return path
}

// RemoveBinary deletes what [Binary] built in this process.
func RemoveBinary() { _ = os.RemoveAll(binaryDir()) }

// binaryDir's name is of the form that labs sweep.
func binaryDir() string {
	return filepath.Join(os.TempDir(), dirPrefix+strconv.Itoa(os.Getpid())+"-bin")
}

// build compiles beside the final path and renames, so that a binary that is there is whole.
func build(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	args := []string{"build", "-trimpath", "-o", path + ".new"}
	env := append(os.Environ(), "CGO_ENABLED=0")
	if os.Getenv("PILOT_LAB_RACE") != "" {
		args = append(args, "-race")
		env = append(os.Environ(), "CGO_ENABLED=1")
	}
	cmd := exec.Command("go", append(args, mainPackage)...)
	cmd.Env = env
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build pilot: %w\n%s", err, out)
	}
	return os.Rename(path+".new", path)
}
