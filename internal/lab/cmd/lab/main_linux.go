// SPDX-License-Identifier: Apache-2.0

// Command lab runs test networks by hand.
//
//	lab            three hosts on one bridge and a shell; all gone when the shell ends
//	lab demo       a whole story with real programs, told step by step
//	lab programs   installs what labs need (root and apt-get), or names the command that does
//
// The environment variable PILOT_BINARY names the pilot to use; without it one is built.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/pilot-protocol/pilot/internal/lab"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "lab: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch strings.Join(args, " ") {
	case "programs":
		return lab.Install()
	case "":
		return session(playground)
	case "demo":
		return session(demo)
	}
	return fmt.Errorf("unknown: %s; usage: lab [demo | programs]", strings.Join(args, " "))
}

// session runs f as a lab's test: what it sets up is taken down at its end, however that comes.
func session(f func(*console)) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces need root: run it with sudo")
	}
	if err := lab.Install(); err != nil {
		return err
	}
	defer lab.RemoveBinary()
	c := &console{}
	defer func() {
		switch v := recover(); v.(type) {
		case nil:
		case failure:
			c.failed, err = true, v.(failure)
		default:
			c.clean()
			panic(v)
		}
		c.clean()
	}()
	f(c)
	return nil
}

// failure is what ends a session early.
type failure struct{ message string }

func (f failure) Error() string { return f.message }

// console is a lab.TB for a person instead of a test.
type console struct {
	cleanups []func()
	failed   bool
}

var _ lab.TB = (*console)(nil)

func (c *console) Helper()                           {}
func (c *console) Name() string                      { return "lab" }
func (c *console) Logf(format string, args ...any)   { fmt.Fprintf(os.Stderr, format+"\n", args...) }
func (c *console) Fatalf(format string, args ...any) { panic(failure{fmt.Sprintf(format, args...)}) }
func (c *console) Skipf(format string, args ...any)  { c.Fatalf(format, args...) }
func (c *console) Failed() bool                      { return c.failed }
func (c *console) Cleanup(f func())                  { c.cleanups = append(c.cleanups, f) }

func (c *console) clean() {
	for len(c.cleanups) > 0 {
		last := len(c.cleanups) - 1
		f := c.cleanups[last]
		c.cleanups = c.cleanups[:last]
		f()
	}
}

// trio makes the network of both commands: hosts a, b and c on one bridge.
func trio(c *console) []*lab.Host {
	l := lab.New(c)
	wan := l.Bridge("wan")
	hosts := []*lab.Host{l.Host("a"), l.Host("b"), l.Host("c")}
	for i, h := range hosts {
		h.Connect(wan, fmt.Sprintf("192.0.2.%d/24", 10+i))
	}
	return hosts
}

// playground gives a person three hosts and a shell.
func playground(c *console) {
	fmt.Println("building pilot and three hosts …")
	binary := lab.Binary(c)
	hosts := trio(c)
	bin, err := os.MkdirTemp("", "pilot-lab-shell-")
	if err != nil {
		c.Fatalf("%v", err)
	}
	defer func() { _ = os.RemoveAll(bin) }()
	fmt.Println("\nthree hosts on one network; \"pilot\" is the one of this source tree:")
	for i, h := range hosts {
		script := fmt.Sprintf("#!/bin/sh\n# runs a command, or a shell, on host %s\n"+
			"[ $# -gt 0 ] || set -- env PS1='%[1]s# ' bash --norc\n"+
			"exec nsenter -t %d -a --wdns=%s env HOME=%[3]s \"$@\"\n", h.Name(), h.PID(), h.Home())
		if err := os.WriteFile(bin+"/"+h.Name(), []byte(script), 0o755); err != nil {
			c.Fatalf("%v", err)
		}
		fmt.Printf("  %s   192.0.2.%d   enter it with \"%s\", or run one command: \"%s pilot status\"\n",
			h.Name(), 10+i, h.Name(), h.Name())
	}
	if err := os.Symlink(binary, bin+"/pilot"); err != nil {
		c.Fatalf("%v", err)
	}
	fmt.Print("\ntry:   a pilot up --name planner\n       b pilot up --name warehouse pilot://…\n       b pilot ping planner\n" +
		"\n\"exit\" ends the lab and all that runs in it.\n\n")
	shell := exec.Command("bash", "--norc")
	shell.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "PS1=lab# ")
	shell.Stdin, shell.Stdout, shell.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := shell.Run(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			c.Fatalf("%v", err)
		}
	}
	fmt.Println("taking the lab down …")
}
