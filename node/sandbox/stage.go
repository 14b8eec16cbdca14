// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"

	"github.com/pilot-protocol/pilot/node/localapi"
	"github.com/pilot-protocol/pilot/platform"
	"github.com/pilot-protocol/pilot/tun"
)

// The stage is this program in the namespaces of the sandbox. It says first whether it could make the interface, whose
// descriptor it passes on, then does what it is asked to, one thing after the other and each with an answer, and in the end
// becomes the sandbox's first process, which starts the program.

// interfaceName is that of the one interface in a sandbox.
const interfaceName = platform.InterfacePrefix + "0"

// order asks the stage for one thing.
type order struct {
	Link  *platform.SandboxLink `json:"link,omitempty"`
	View  *platform.SandboxView `json:"view,omitempty"`
	Start bool                  `json:"start,omitempty"`
}

// answer says how it went.
type answer struct {
	Error    *localapi.Error `json:"error,omitempty"`
	Warnings []string        `json:"warnings,omitempty"`
}

// initArgs is the command line of a sandbox's first process, whose list of processes shows it.
func initArgs(program []string) []string {
	return append([]string{"pilot", CommandInit, "--"}, program...)
}

// stageArgs is that of the process before.
func stageArgs(program []string) []string {
	return append([]string{"pilot", CommandStage, "--"}, program...)
}

// The commands that this program has for itself.
const (
	CommandStage = "sandbox-stage"
	CommandInit  = "sandbox-init"
)

// Stage is the command CommandStage; program is the command line of the program to be run. It returns only if it fails.
func Stage(program []string) error {
	control, err := platform.SandboxControl()
	if err != nil {
		return err
	}
	defer control.Close()
	f, err := tun.OpenFile(interfaceName)
	if err := reply(control, answer{Error: explainStage(err)}, f); err != nil || f == nil {
		return err
	}
	defer f.Close()
	for {
		message, _, err := control.Receive()
		if err != nil {
			return err
		}
		var o order
		if err := json.Unmarshal(message, &o); err != nil {
			return err
		}
		var a answer
		switch {
		case o.Link != nil:
			err = platform.ConfigureSandbox(*o.Link)
		case o.View != nil:
			a.Warnings, err = platform.ShowSandbox(*o.View)
		case o.Start:
			f.Close() // the launcher has its own
			err = platform.SealSandbox(initArgs(program), os.Environ())
		default:
			err = fmt.Errorf("an order that this stage doesn't know: %s", message)
		}
		a.Error = explainStage(err)
		if err := reply(control, a, nil); err != nil {
			return err
		}
	}
}

func reply(control *platform.Control, a answer, f *os.File) error {
	text, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return control.Send(text, f)
}

// Init is the command CommandInit: it runs a program and returns its exit status. The error says why there is none.
func Init(program []string) (status int, err error) {
	control, err := platform.SandboxControl()
	if err != nil {
		return 0, err
	}
	if err := reply(control, answer{}, nil); err != nil {
		return 0, err
	}
	path, err := Find(program)
	if err != nil {
		return notFound(err), err
	}
	return platform.RunSandboxed(control, path, program, os.Environ())
}

// Find looks a program up as a shell would.
func Find(program []string) (path string, err error) {
	path, err = exec.LookPath(program[0])
	if errors.Is(err, exec.ErrDot) {
		err = nil // PATH names the working directory, and that is the user's choice
	}
	return path, err
}

func notFound(err error) int {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound) {
		return platform.StatusNotFound
	}
	return platform.StatusNotExecutable
}

// explainStage gives an error of the stage its code and a remedy; nil for nil.
func explainStage(err error) *localapi.Error {
	var open *tun.OpenError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &open):
		e := &localapi.Error{Code: localapi.CodeNoTUN, Message: err.Error(), Hint: open.Hint}
		if errors.Is(err, fs.ErrPermission) {
			e.Hint = "let all users open it, as most systems do: sudo chmod 0666 /dev/net/tun; in a container, start it with --device /dev/net/tun"
		}
		return e
	case errors.Is(err, fs.ErrPermission):
		return &localapi.Error{Code: localapi.CodeNoNamespace, Message: "the sandbox can't be set up: " + err.Error(), Hint: platform.WhyNoNamespaces()}
	}
	return &localapi.Error{Code: localapi.CodeInternal, Message: "the sandbox can't be set up: " + err.Error()}
}
