// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// searchPath is where programs of a host are looked for, so that what a test runs does not depend on its caller.
const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Result is how a program ended.
type Result struct {
	Command        string // as a person would have typed it
	Stdout, Stderr string
	Code           int   // exit status; -1 if a signal or the context ended it, or it could not be started
	Err            error // why Code is -1, or not nil because something else went wrong
}

// OK tells whether the program ran and ended with status 0.
func (r Result) OK() bool { return r.Err == nil && r.Code == 0 }

// String is the command with what it printed, for messages.
func (r Result) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "$ %s\n%s%s(status %d", r.Command, r.Stdout, r.Stderr, r.Code)
	if r.Err != nil {
		fmt.Fprintf(&b, ", %v", r.Err)
	}
	b.WriteString(")")
	return b.String()
}

// Run runs a program on the host and waits for its end, or ends it with the context. The program "pilot" is the one
// under test, see [Binary].
func (h *Host) Run(ctx context.Context, args ...string) Result { return h.RunInput(ctx, "", args...) }

// RunInput is Run with something for the program's standard input.
func (h *Host) RunInput(ctx context.Context, input string, args ...string) Result {
	var stdout, stderr lockedBuffer
	r := Result{Command: strings.Join(args, " "), Code: -1}
	cmd := h.command(ctx, args)
	cmd.Stdin = strings.NewReader(input)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := h.In(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		r.Code = 0
	case errors.As(err, &exit) && exit.Exited():
		r.Code = exit.ExitCode()
	case ctx.Err() != nil:
		r.Err = fmt.Errorf("ended by the test: %w", ctx.Err())
	case errors.Is(err, exec.ErrWaitDelay):
		r.Err = errors.New("ended, but left a process behind that holds its output open")
	default:
		r.Err = err
	}
	r.Stdout, r.Stderr = stdout.String(), stderr.String()
	return r
}

// Must is Run for programs that have to succeed. It returns what they wrote to standard output.
func (h *Host) Must(ctx context.Context, args ...string) string {
	h.lab.tb.Helper()
	r := h.Run(ctx, args...)
	if !r.OK() {
		h.lab.tb.Fatalf("%s: %v", h.name, r)
	}
	return r.Stdout
}

// Process is a program that runs on in the background.
type Process struct {
	cmd     *exec.Cmd
	command string
	log     string
	done    chan struct{}
	err     error // valid after done
}

// Start starts a program that goes on until it ends, is killed, or the lab is taken down. Its output goes to a file
// that is shown if the test fails.
func (h *Host) Start(args ...string) *Process {
	h.lab.tb.Helper()
	p := &Process{command: strings.Join(args, " "), done: make(chan struct{})}
	h.mu.Lock()
	p.log = filepath.Join(h.dir, "log", fmt.Sprintf("%02d-%s", len(h.processes), filepath.Base(args[0])))
	h.processes = append(h.processes, p)
	h.mu.Unlock()
	out, err := os.Create(p.log)
	if err != nil {
		close(p.done)
		h.lab.tb.Fatalf("lab: %v", err)
	}
	p.cmd = h.command(context.Background(), args)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	err = h.In(p.cmd.Start)
	_ = out.Close()
	if err != nil {
		close(p.done)
		h.lab.tb.Fatalf("%s: %s: %v", h.name, p.command, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p
}

// Logs is what the program has written so far.
func (p *Process) Logs() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// Signal sends a signal to the program and those that it started in its process group.
// It does nothing once the program has ended.
func (p *Process) Signal(s syscall.Signal) {
	if p.Running() {
		_ = syscall.Kill(-p.cmd.Process.Pid, s)
	}
}

// Kill ends the program at once (SIGKILL) and waits until it is gone.
func (p *Process) Kill() {
	p.Signal(syscall.SIGKILL)
	<-p.done
}

// Running tells whether the program has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Wait waits for the program's end. It returns an *exec.ExitError for a status other than 0.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("%s still runs: %w", p.command, ctx.Err())
	}
}

// command prepares a program; it must be started through [Host.In].
func (h *Host) command(ctx context.Context, args []string) *exec.Cmd {
	path := h.look(args[0])
	cmd := exec.CommandContext(ctx, path, args[1:]...)
	cmd.Args[0] = args[0]
	cmd.Env = h.environ()
	cmd.Dir = h.Home()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 2 * time.Second
	return cmd
}

// look finds a program. What is not found is left to the start to complain about.
func (h *Host) look(name string) string {
	if h.inside {
		if path, ok := lookPathIn(h.Path("/"), name); ok {
			return path
		}
		return name
	}
	if name == "pilot" {
		return Binary(h.lab.tb)
	}
	if path, ok := lookPath(name); ok {
		return path
	}
	return name
}

func lookPath(name string) (string, bool) { return lookPathIn("/", name) }

// lookPathIn finds a program in the file system at root; the path is relative to that.
func lookPathIn(root, name string) (string, bool) {
	if strings.Contains(name, "/") {
		return name, true
	}
	for _, dir := range filepath.SplitList(searchPath) {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(filepath.Join(root, path)); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
			return path, true
		}
	}
	return "", false
}

// environ is the whole environment of a host's programs: nothing of the caller's gets in, and what Setenv said.
func (h *Host) environ() []string {
	env := []string{
		"PATH=" + searchPath, "HOME=" + h.Home(), "LANG=C.UTF-8", "TERM=dumb", "USER=root", "LOGNAME=root",
		"PYTHONUNBUFFERED=1",
	}
	if dir := os.Getenv("GOCOVERDIR"); dir != "" {
		env = append(env, "GOCOVERDIR="+dir)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return append(env, h.env...)
}

// lockedBuffer is a buffer that may be read while a program still writes to it.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

var _ io.Writer = (*lockedBuffer)(nil)

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
