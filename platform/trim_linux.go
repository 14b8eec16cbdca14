// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Trim takes the pages of the program's own file out of its memory. Those that it still needs come back from the system's
// cache as they are touched, in some microseconds each; what only its start needed does not, and the system may use that
// memory for something else.
func Trim() error {
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return err
	}
	for _, m := range cleanMappings(maps) {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED); errno != 0 {
			return os.NewSyscallError("madvise", errno)
		}
	}
	return nil
}

type mapping struct{ start, end uintptr }

// cleanMappings finds what is mapped from a file, can't be written to, and has no page that differs from the file: a
// linker may have written to some before they became read-only.
func cleanMappings(smaps []byte) (clean []mapping) {
	var m mapping
	fits := false
	for s := bufio.NewScanner(bytes.NewReader(smaps)); s.Scan(); {
		f := bytes.Fields(s.Bytes())
		if len(f) < 2 {
			continue
		}
		switch key := f[0]; {
		case key[len(key)-1] != ':':
			// 00400000-01367000 r-xp 00000000 fd:00 1234 /usr/bin/pilot
			fits = len(f) == 6 && len(f[1]) == 4 && f[1][0] == 'r' && f[1][1] == '-' && f[1][3] == 'p' && !bytes.Equal(f[4], []byte("0"))
			if fits {
				_, err := fmt.Sscanf(string(key), "%x-%x", &m.start, &m.end)
				fits = err == nil && m.start < m.end
			}
		case bytes.Equal(key, []byte("Anonymous:")), bytes.Equal(key, []byte("Swap:")):
			n, err := strconv.Atoi(string(f[1]))
			fits = fits && err == nil && n == 0
		case bytes.Equal(key, []byte("VmFlags:")): // the last line
			if fits {
				clean = append(clean, m)
			}
			fits = false
		}
	}
	return clean
}
