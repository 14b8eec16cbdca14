// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/pilot-protocol/pilot/identity"
	"github.com/pilot-protocol/pilot/node/localapi"
)

// examplesHeading stands between what a command is about and the rest of its manual; help puts the flags before it.
const examplesHeading = "\nexamples:\n"

// manual is the help text of a command beside its usage and flags, so that nobody needs another document.
type manual struct {
	about    string
	examples []string
	exits    []int        // statuses that this command may end with, beside 0, 1, 2 and interruption
	result   reflect.Type // what --json prints
	note     string       // on the result
}

// String lays the manual out.
func (m manual) String() string {
	var b bytes.Buffer
	fmt.Fprintln(&b, strings.TrimSpace(m.about))
	fmt.Fprintf(&b, examplesHeading+"  %s\n", strings.Join(m.examples, "\n  "))
	fmt.Fprintf(&b, "\nexit statuses:\n")
	exits := append([]int{localapi.ExitOK, localapi.ExitFailure, localapi.ExitUsage}, m.exits...)
	for _, status := range append(exits, exitInterrupted) {
		fmt.Fprintf(&b, "  %-5d%s\n", status, exitMeaning(status))
	}
	if m.result != nil {
		fmt.Fprintf(&b, "\nwith --json (%s):\n", m.result.Name())
		if m.note != "" {
			fmt.Fprintf(&b, "  %s\n", m.note)
		}
		tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		describe(tw, m.result, "")
		_ = tw.Flush() // into a buffer
	}
	return b.String()
}

func exitMeaning(status int) string {
	switch status {
	case localapi.ExitOK:
		return "done"
	case localapi.ExitFailure:
		return "it failed in a way that has no status of its own"
	case localapi.ExitUsage:
		return "the command line is wrong (also: a name or invite that can't be one)"
	case localapi.ExitNotRunning:
		return "no daemon answers, or it has no network that is up"
	case localapi.ExitForbidden:
		return "refused: permission, trust, revocation"
	case localapi.ExitNotFound:
		return "there is no such agent, or not one that you may see"
	case localapi.ExitConflict:
		return "conflict: the name is taken, the invite used or expired, the port in use"
	case localapi.ExitUnreachable:
		return "the coordinator or the peer can't be reached or didn't answer in time"
	case localapi.ExitKeyMismatch:
		return "a key is not the one that was expected: somebody may be in between"
	case localapi.ExitState:
		return "the state folder is damaged, locked, insecure or of a newer pilot"
	case localapi.ExitProblems:
		return "problems were found"
	case exitInterrupted:
		return "interrupted"
	case exitRun:
		return "the program was not run; all statuses but these three are the program's own, 128 and more if a signal ended it"
	case exitNotExecutable:
		return "the program can't be run"
	case exitNoProgram:
		return "there is no such program"
	}
	return "unknown"
}

// describe lists the fields of a JSON object by their paths.
func describe(tw *tabwriter.Writer, t reflect.Type, prefix string) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" && f.Anonymous {
			describe(tw, element(f.Type), prefix)
			continue
		}
		if name == "" || name == "-" {
			continue
		}
		optional := ""
		if strings.Contains(options, "omit") {
			optional = ", optional"
		}
		path := prefix + name
		ft := f.Type
		switch ft.Kind() {
		case reflect.Slice:
			path += "[]"
		case reflect.Map:
			path += ".KEY"
		}
		ft = element(ft)
		if kind := jsonKind(ft); kind != "" {
			fmt.Fprintf(tw, "  %s\t%s%s\n", path, kind, optional)
			continue
		}
		fmt.Fprintf(tw, "  %s\tobject%s\n", path, optional)
		describe(tw, ft, path+".")
	}
}

// element is the type of which a pointer, list or map is made.
func element(t reflect.Type) reflect.Type {
	for !isText(t) && (t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map) {
		t = t.Elem()
	}
	return t
}

func isText(t reflect.Type) bool { return t.Implements(reflect.TypeFor[encoding.TextMarshaler]()) }

// jsonKind names a value that is no object; it is empty for an object.
func jsonKind(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[time.Time]():
		return "time (RFC 3339)"
	case reflect.TypeFor[netip.Addr]():
		return "IP address"
	case reflect.TypeFor[netip.AddrPort]():
		return "address:port"
	case reflect.TypeFor[identity.AgentPublic]():
		return "key (agent:…)"
	case reflect.TypeFor[identity.AuthorityPublic]():
		return "key (authority:…)"
	}
	switch t.Kind() {
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "true or false"
	case reflect.Struct:
		return ""
	}
	return "number"
}
