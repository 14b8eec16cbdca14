// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// resident is how much of the files that the process has mapped is in its memory, in KiB.
func resident(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "RssFile:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestTrim(t *testing.T) {
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	if len(cleanMappings(maps)) == 0 {
		t.Fatalf("nothing of the program is clean:\n%s", maps)
	}
	before := resident(t)
	if err := Trim(); err != nil {
		t.Fatal(err)
	}
	if after := resident(t); after >= before {
		t.Errorf("%d KiB before, %d KiB after", before, after)
	}
}

func TestCleanMappings(t *testing.T) {
	const smaps = `00400000-01367000 r-xp 00000000 fd:00 1234                       /usr/bin/pilot
Size:              15772 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd ex mr mw me
01367000-023ee000 r--p 00f67000 fd:00 1234                       /usr/bin/pilot
Anonymous:             4 kB
Swap:                  0 kB
VmFlags: rd mr mw me
023ee000-023ef000 r--p 00f67000 fd:00 1234                       /usr/bin/pilot
Anonymous:             0 kB
Swap:                  4 kB
VmFlags: rd mr mw me
023ef000-02489000 rw-p 01fee000 fd:00 1234                       /usr/bin/pilot
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd wr mr mw me ac
7ffd0000-7ffd1000 r-xp 00000000 00:00 0                          [vdso]
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd ex mr mw me de
7ffd2000-7ffd3000 r--s 00000000 fd:00 99                         /var/lib/shared
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd mr mw me
7ffd4000-7ffd5000 r--p 00000000 fd:00 98                         /lib/x86_64-linux-gnu/libc.so.6
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd mr mw me
`
	want := []mapping{{0x400000, 0x1367000}, {0x7ffd4000, 0x7ffd5000}}
	if got := cleanMappings([]byte(smaps)); !slices.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
}
