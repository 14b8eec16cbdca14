// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// StartBackground starts a program that outlives this one: in a session of its own, in the root folder, with nothing
// of this process's files but its output appended to logFile, which is made readable by the owner only. Paths among
// the arguments must therefore be absolute. Of the environment it gets only what backgroundEnv lists. It returns the
// process's id as soon as the program runs; whether it stays alive is not known then.
func StartBackground(exe string, args []string, logFile string) (pid int, err error) {
	log, err := openLog(logFile)
	if err != nil {
		return 0, fmt.Errorf("start %s: log: %w", exe, err)
	}
	defer log.Close()
	closeInherited()
	cmd := exec.Command(exe, args...)
	cmd.Dir = backgroundDir
	cmd.Env = backgroundEnv(os.Environ())
	cmd.Stdout, cmd.Stderr = log, log // standard input is the null device
	cmd.SysProcAttr = backgroundAttr()
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start %s: %w", exe, err)
	}
	pid = cmd.Process.Pid
	return pid, cmd.Process.Release()
}

// backgroundEnv keeps the variables that a daemon may need and that hold no secret. Everything else that the shell
// has, tokens above all, would stay readable in the daemon's environment for as long as it runs.
func backgroundEnv(env []string) []string {
	keep := []string{
		"PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR", "TEMP", "TMP", "XDG_RUNTIME_DIR",
		"PILOT_STATE", "DBUS_SYSTEM_BUS_ADDRESS", "SSL_CERT_FILE", "SSL_CERT_DIR",
		"NO_PROXY", "PILOT_PROXY_AUTH_FILE", "PILOT_PROXY_AUTH_COMMAND",
		"GODEBUG", "GOMAXPROCS", "GOMEMLIMIT", "GOGC", "GOTRACEBACK", "GOCOVERDIR",
		"SYSTEMROOT", "WINDIR", "SYSTEMDRIVE", "PROGRAMDATA", "PROGRAMFILES", "COMSPEC", "PATHEXT",
		"LOCALAPPDATA", "APPDATA", "USERPROFILE",
	}
	out := []string{}
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		upper := strings.ToUpper(name)
		switch {
		case slices.Contains(keep, upper), strings.HasPrefix(upper, "LC_"):
			out = append(out, kv)
		case (upper == "HTTPS_PROXY" || upper == "HTTP_PROXY" || upper == "ALL_PROXY") && !strings.Contains(value, "@"):
			out = append(out, kv) // with an '@' it holds a password
		}
	}
	return out
}
