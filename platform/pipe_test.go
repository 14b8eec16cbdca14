// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// The rights of Windows that matter here, as bits.
const (
	fileRead = 1 << iota
	fileWrite
	makeInstance // of the pipe: whoever may could stand in the daemon's place
	writeDAC
	all = fileRead | fileWrite | makeInstance | writeDAC
)

// admitted decides as AccessCheck does: entries in their order, of those that are about one of the token's identities a
// denial of what is still asked for ends it, and grants add up; what no entry grants is denied. A descriptor without a list
// grants everything. Only what our descriptors are written with is understood.
func admitted(sddl string, token []string, wanted int) (bool, error) {
	_, list, found := strings.Cut(sddl, "D:")
	if !found {
		return true, nil
	}
	list = strings.TrimPrefix(list, "P")
	for list != "" {
		entry, rest, ok := strings.Cut(strings.TrimPrefix(list, "("), ")")
		fields := strings.Split(entry, ";")
		if !strings.HasPrefix(list, "(") || !ok || len(fields) != 6 {
			return false, fmt.Errorf("not understood: %q", list)
		}
		list = rest
		rights, known := map[string]int{"GA": all, "FA": all, "GR": fileRead, "GW": fileWrite, "GRGW": fileRead | fileWrite}[fields[2]]
		if !known {
			return false, fmt.Errorf("rights %q", fields[2])
		}
		if !slices.Contains(token, fields[5]) {
			continue
		}
		switch {
		case fields[0] == "D" && wanted&rights != 0:
			return false, nil
		case fields[0] == "A":
			if wanted &^= rights; wanted == 0 {
				return true, nil
			}
		case fields[0] != "D":
			return false, fmt.Errorf("entry of kind %q", fields[0])
		}
	}
	return false, nil
}

// TestAbuse03 shows that a program with low privileges, of another user, of a sandbox or over the network, can neither open
// the daemon's pipe or state folder, nor make another instance of the pipe, nor change who may.
func TestAbuse03LowPrivilegesOpenNeitherPipeNorFolder(t *testing.T) {
	const daemon, other = "S-1-5-21-1-2-3-1001", "S-1-5-21-1-2-3-1002"
	const everyone, users, authenticated, interactive = "WD", "BU", "AU", "IU"
	tokens := map[string]struct {
		sids []string
		may  bool
	}{
		"another user":                  {[]string{other, everyone, users, authenticated, interactive}, false},
		"another user over the network": {[]string{other, everyone, users, authenticated, "NU"}, false},
		"a guest":                       {[]string{"LG", everyone, "BG", interactive}, false},
		"nobody (anonymous)":            {[]string{"AN", everyone, "NU"}, false},
		"a web service (local service)": {[]string{"LS", everyone, users, authenticated, "SU"}, false},
		"network service":               {[]string{"NS", everyone, users, authenticated, "SU"}, false},
		"an app container":              {[]string{"AC"}, false},
		"an administrator not elevated": {[]string{other, everyone, users, authenticated, interactive}, false}, // the group counts to deny only
		"the daemon's user":             {[]string{daemon, everyone, users, authenticated, interactive}, true},
		"an administrator":              {[]string{other, "BA", everyone, users, authenticated, interactive}, true},
		"the system":                    {[]string{"SY", "BA", everyone, authenticated}, true},
	}
	network := map[string][]string{
		"an administrator over the network":  {other, "BA", everyone, users, authenticated, "NU"},
		"the daemon's user over the network": {daemon, everyone, users, authenticated, "NU"},
	}
	for what, sddl := range map[string]string{"pipe": pipeSDDL(daemon), "folder": folderSDDL(daemon)} {
		if !strings.HasPrefix(sddl, "O:"+daemon+"D:P(") {
			t.Errorf("%s: the list is not protected, or the owner another one: %s", what, sddl)
		}
		for name, token := range tokens {
			for right := 1; right <= all; right <<= 1 {
				if may, err := admitted(sddl, token.sids, right); err != nil || may != token.may {
					t.Errorf("%s: %s, right %d: %v, %v", what, name, right, may, err)
				}
			}
		}
		for name, sids := range network {
			if may, err := admitted(sddl, sids, fileRead|fileWrite); err != nil || may != (what == "folder") {
				t.Errorf("%s: %s: %v, %v", what, name, may, err)
			}
		}
	}
	// The decision itself tells apart: these would let the other user in.
	for _, wide := range []string{"O:BAD:P(A;;GA;;;WD)", "O:BAD:P(A;;GA;;;SY)(A;;GRGW;;;AU)", "O:BAD:P(A;;GA;;;BU)(D;;GA;;;BU)", "O:BA"} {
		if may, err := admitted(wide, tokens["another user"].sids, fileRead); !may || err != nil {
			t.Errorf("%s: %v, %v", wide, may, err)
		}
	}
	for _, odd := range []string{"O:BAD:P(X;;GA;;;" + other + ")", "O:BAD:P(A;;QQ;;;WD)", "O:BAD:Pnonsense"} {
		if may, err := admitted(odd, tokens["another user"].sids, fileRead); may || err == nil {
			t.Errorf("%s: %v, %v", odd, may, err)
		}
	}
}

// A caller whose connection tells nothing of it may nothing.
func TestAbuse03UnknownCaller(t *testing.T) {
	if (Caller{}).MayControl() {
		t.Error("the zero caller may control the daemon")
	}
}
