// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Capture is a running tcpdump that sees every frame on a bridge.
type Capture struct {
	lab     *Lab
	bridge  string
	process *Process
	path    string
}

// Capture starts to record the whole frames that pass the bridge. It returns once the recording runs.
func (b *Bridge) Capture() *Capture {
	b.lab.tb.Helper()
	Programs(b.lab.tb, "tcpdump")
	c := &Capture{lab: b.lab, bridge: b.name, path: filepath.Join(b.lab.dir, b.name+".pcap")}
	c.process = b.lab.fabric.Start("tcpdump", "-i", b.name, "-s", "0", "-U", "--immediate-mode", "-B", "65536", "-n", "-Z", "root", "-w", c.path)
	b.lab.wait("listening on", c.process)
	return c
}

// Stop ends the recording and returns the bytes of the pcap file: each frame as it was, after a header. It ends the
// test if the kernel dropped any frame, because what was not recorded was not looked at.
func (c *Capture) Stop() []byte {
	c.lab.tb.Helper()
	// A packet to nobody marks the end: when it is in the file, so is everything before it.
	end := []byte("end of the capture")
	c.lab.fabric.must("bash", "-c", fmt.Sprintf("ip neigh replace 203.0.113.255 lladdr 02:00:00:00:00:01 dev %s; "+
		"ip route replace 203.0.113.255 dev %[1]s; echo -n '%s' > /dev/udp/203.0.113.255/9", c.bridge, end))
	Eventually(c.lab.tb, setupTimeout, func(context.Context) error {
		frames, err := os.ReadFile(c.path)
		if err == nil && !bytes.Contains(frames, end) {
			err = errors.New("the capture has not caught up")
		}
		return err
	})
	c.process.Signal(syscall.SIGINT)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := c.process.Wait(ctx); err != nil {
		c.lab.tb.Fatalf("lab: %v\n%s", err, c.process.Logs())
	}
	var captured, received, dropped int
	logs := c.process.Logs()
	if _, err := fmt.Sscanf(logs[max(0, strings.Index(logs, "bytes\n")+6):],
		"%d packets captured\n%d packets received by filter\n%d packets dropped", &captured, &received, &dropped); err != nil ||
		captured == 0 || captured != received || dropped != 0 {
		c.lab.tb.Fatalf("lab: the capture is not whole: %v\n%s", err, logs)
	}
	frames, err := os.ReadFile(c.path)
	if err != nil {
		c.lab.tb.Fatalf("lab: %v", err)
	}
	return frames
}

// wait waits until a background program has printed something.
func (l *Lab) wait(text string, p *Process) {
	l.tb.Helper()
	Eventually(l.tb, setupTimeout, func(context.Context) error {
		switch {
		case strings.Contains(p.Logs(), text):
			return nil
		case !p.Running():
			l.tb.Fatalf("lab: %s ended:\n%s", p.command, p.Logs())
		}
		return context.DeadlineExceeded
	})
}
