// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"strings"
)

// nrptComment marks our rules in the Name Resolution Policy Table of Windows. A host may run daemons of several networks,
// each with its interface.
func nrptComment(name string) string { return "pilot " + name }

// nrptSet is the PowerShell script that sends our zones, and all names below them, to our server. All that goes into it
// has been validated: no quote can occur.
func nrptSet(c DNSConfig) string {
	var spaces []string
	for _, z := range append([]string{c.Zone}, c.Reverse...) {
		spaces = append(spaces, "'."+z+"'")
	}
	script := "$ErrorActionPreference='Stop'; " + nrptRemove(c.Interface) + "; " +
		"Add-DnsClientNrptRule -Namespace " + strings.Join(spaces, ",") +
		" -NameServers '" + c.Server.String() + "' -Comment '" + nrptComment(c.Interface) + "'; "
	if len(c.Search) > 0 {
		script += "Set-DnsClient -InterfaceAlias '" + c.Interface + "' -ConnectionSpecificSuffix '" + c.Search[0] + "'; "
	}
	return script + "Clear-DnsClientCache"
}

// nrptRemove takes our rules out. The suffix goes with the adapter.
func nrptRemove(name string) string {
	return "Get-DnsClientNrptRule | Where-Object { $_.Comment -eq '" + nrptComment(name) + "' } | Remove-DnsClientNrptRule -Force"
}

// resolverFiles are the files of macOS's resolver(5): one for each domain, with the server to ask.
func resolverFiles(folder string, c DNSConfig) map[string][]byte {
	files := make(map[string][]byte)
	content := resolvMarker + "\nnameserver " + c.Server.String() + "\n"
	for _, z := range append([]string{c.Zone}, c.Reverse...) {
		files[folder+"/"+z] = []byte(content)
	}
	// A file of any name may add search domains; it has no nameserver, so it routes nothing. Each network has its own.
	if len(c.Search) > 0 {
		files[folder+"/search."+c.Zone] = []byte(resolvMarker + "\nsearch " + strings.Join(c.Search, " ") + "\n")
	}
	return files
}
