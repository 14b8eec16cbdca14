// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// guard is a process of its own that undoes what this one has set when this one is killed: it learns of that by the end
// of its standard input. A word on it says that there is nothing to undo.
type guard struct {
	cmd  *exec.Cmd
	word io.WriteCloser
}

// guardPatience is for how long a guard that has been dismissed may take to end.
const guardPatience = 5 * time.Second

func startGuard(args []string) (*guard, error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = backgroundDir
	cmd.Env = backgroundEnv(os.Environ())
	cmd.SysProcAttr = backgroundAttr()
	word, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", args[0], err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", args[0], err)
	}
	return &guard{cmd: cmd, word: word}, nil
}

// dismiss returns when the guard has ended.
func (g *guard) dismiss() {
	late := time.AfterFunc(guardPatience, func() { _ = g.cmd.Process.Kill() })
	defer late.Stop()
	// One that was killed meanwhile has no ears, and no status worth a word.
	_, _ = io.WriteString(g.word, "done\n")
	_ = g.word.Close()
	_ = g.cmd.Wait()
}
