// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/pilot-protocol/pilot/coordinator/api"
	"github.com/pilot-protocol/pilot/node/localapi"
)

// exitInterrupted is the exit status after SIGINT or SIGTERM cut a command short, as shells have it for SIGINT.
const exitInterrupted = 130

// exit ends pilot with a status and without a word: all that there is to say was said.
type exit int

func (e exit) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// usage is the error of a command line that is wrong.
func usage(format string, args ...any) *localapi.Error {
	return &localapi.Error{Code: localapi.CodeUsage, Message: fmt.Sprintf(format, args...)}
}

// report shows an error where its readers look for it, people on standard error and programs on standard output, and
// returns the exit status.
func (p *program) report(ctx context.Context, err error, asJSON bool) int {
	var silent exit
	switch {
	case err == nil:
		return localapi.ExitOK
	case errors.As(err, &silent):
		return int(silent)
	case ctx.Err() != nil:
		return exitInterrupted
	}
	e := asError(err)
	if asJSON {
		if werr := p.writeJSON(failure{Error: e}); werr == nil {
			return localapi.ExitStatus(e.Code)
		}
	}
	fmt.Fprintf(p.stderr, "pilot: %s\n", safe(e.Message))
	if e.Hint != "" {
		fmt.Fprintf(p.stderr, "hint: %s\n", safe(e.Hint))
	}
	if e.Suggestion != "" {
		fmt.Fprintf(p.stderr, "suggestion: %s\n", safe(e.Suggestion))
	}
	return localapi.ExitStatus(e.Code)
}

// failure is how an error looks in JSON, on standard output.
type failure struct {
	Error *localapi.Error `json:"error"`
}

// asError gives every error a code.
func asError(err error) *localapi.Error {
	var own *localapi.Error
	var remote *api.Error
	switch {
	case errors.As(err, &own):
		return own
	case errors.As(err, &remote):
		return &localapi.Error{Code: localapi.CodeCoordinator, Message: remote.Message, Hint: remote.Hint, Suggestion: remote.Suggestion}
	case errors.Is(err, fs.ErrPermission):
		return &localapi.Error{Code: localapi.CodePermission, Message: err.Error(),
			Hint: "run it as root (sudo), or with a folder of your own: --state DIR"}
	}
	return &localapi.Error{Code: localapi.CodeInternal, Message: err.Error()}
}

// codeOf is the code of an error, empty where it has none.
func codeOf(err error) string {
	var e *localapi.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}
