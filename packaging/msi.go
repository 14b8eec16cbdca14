// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/md5"
	"crypto/sha1"
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// The tables of the installer for Windows (learn.microsoft.com/windows/win32/msi/database-tables), as they are written
// into the database by msibuild of Debian's msitools. wixl, of the same tools, would spare half of this file. But it knows
// no Environment table, no arm64, no custom action with a program of the system's, writes expandable registry values as
// plain ones, and takes times and identifiers from the clock and from chance.

// msi is what the tables are made from.
type msi struct {
	arch    string
	version version
	time    time.Time
	files   []msiFile // the program, then Wintun, then the rest
	// standIn is true where wintun.dll is no Wintun. Such a package has another name, refuses to be installed unless it is
	// told that this is a test, and can't replace a true one.
	standIn bool
}

// msiFile is a file of the package.
type msiFile struct {
	id, name  string // key in the table File; name on the disk, in the form short|long where it isn't 8.3
	component string
	source    string
	version   string // of its version resource, where it has one
}

// table is one table of the database: a row of names, one of types, the keys, the content.
type table struct {
	name, columns, types, keys string
	rows                       [][]string
}

// Who is who never changes: by the first, versions of pilot find each other; a component is the same in all versions.
const (
	msiNamespace       = "b0f1c3fc-3f3b-5e0e-9a55-6d8d6e4f0c57"
	upgradeCode        = "{7D8A4A5B-5E2C-4F0B-A6C4-2B1D1D8E4A60}"
	upgradeCodeStandIn = "{7D8A4A5B-5E2C-4F0B-A6C4-2B1D1D8E4A61}"
)

// uuid is a name-based UUID (RFC 9562, version 5) in the form that the database wants.
func uuid(name string) string {
	var space [16]byte
	for i, digits := 0, strings.ReplaceAll(msiNamespace, "-", ""); i < 16; i++ {
		b, _ := strconv.ParseUint(digits[2*i:2*i+2], 16, 8) // of a constant
		space[i] = byte(b)
	}
	sum := sha1.Sum(append(space[:], name...)) // as the RFC has it; no security rests on it
	sum[6], sum[8] = sum[6]&0x0f|0x50, sum[8]&0x3f|0x80
	return fmt.Sprintf("{%X-%X-%X-%X-%X}", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
}

func (m msi) product() string {
	if m.standIn {
		return "pilot TEST without Wintun"
	}
	return "pilot"
}

func (m msi) upgradeCode() string {
	if m.standIn {
		return upgradeCodeStandIn
	}
	return upgradeCode
}

// template names the processor (and the language, English) in the summary, by which Windows refuses a wrong one.
func (m msi) template() (string, error) {
	switch m.arch {
	case "amd64":
		return "x64;1033", nil
	case "arm64":
		return "Arm64;1033", nil
	}
	return "", fmt.Errorf("no installer for Windows on %s", m.arch)
}

// Types of custom actions: a program of the package or of a folder of the system's, run with the system's rights when the
// changes are made; a failure is not the installation's.
const (
	runFile     = 18 | continueOnError | deferred
	runSystem   = 34 | continueOnError | deferred
	runRollback = runSystem | 256

	continueOnError = 64
	deferred        = 1024 | 2048 // the second: as SYSTEM
)

// Conditions on when an action runs.
const (
	installing = "$Program=3" // also in an upgrade
	removing   = "$Program=2" // also the old version in an upgrade
	purging    = removing + ` AND PURGE="1" AND NOT UPGRADINGPRODUCTCODE`
)

// tables are the whole database but for its summary and the cabinet with the files.
func (m msi) tables() ([]table, error) {
	files, hashes, err := m.fileTables()
	if err != nil {
		return nil, err
	}
	// Conditions are asked at a removal too, that of the old version in an upgrade among them.
	conditions := [][]string{{"NOT NEWERFOUND OR Installed", "A newer version of pilot is installed already. Remove that first: pilot's state stays where it is."}}
	if m.standIn {
		conditions = append(conditions, []string{`PILOTTEST="yes" OR Installed`, "This package is for tests alone: it comes without Wintun, and pilot can't work with it."})
	}
	t := []table{
		{"Property", "Property\tValue", "s72\tl0", "Property", m.properties()},
		{"LaunchCondition", "Condition\tDescription", "s255\tl255", "Condition", conditions},
		// A version with the same three numbers is replaced too: of 1.2.3-rc.1 and 1.2.3 Windows sees no more than these.
		{"Upgrade", "UpgradeCode\tVersionMin\tVersionMax\tLanguage\tAttributes\tRemove\tActionProperty",
			"s38\tS20\tS20\tS255\ti4\tS255\ts72", "UpgradeCode\tVersionMin\tVersionMax\tLanguage\tAttributes", [][]string{
				{m.upgradeCode(), "", m.version.base, "", "513", "", "OLDERFOUND"}, // MigrateFeatures, VersionMaxInclusive
				{m.upgradeCode(), m.version.base, "", "", "2", "", "NEWERFOUND"},   // OnlyDetect
			}},
		{"Directory", "Directory\tDirectory_Parent\tDefaultDir", "s72\tS72\tl255", "Directory", [][]string{
			{"TARGETDIR", "", "SourceDir"},
			{"ProgramFiles64Folder", "TARGETDIR", "."},
			{"INSTALLFOLDER", "ProgramFiles64Folder", "pilot"},
			{"CommonAppDataFolder", "TARGETDIR", "."},
			{"System64Folder", "TARGETDIR", "."},
		}},
		{"Feature", "Feature\tFeature_Parent\tTitle\tDescription\tDisplay\tLevel\tDirectory_\tAttributes",
			"s38\tS38\tL64\tL255\tI2\ti2\tS72\ti2", "Feature", [][]string{{"Main", "", "pilot", "", "2", "1", "INSTALLFOLDER", "0"}}},
		{"Component", "Component\tComponentId\tDirectory_\tAttributes\tCondition\tKeyPath", "s72\tS38\ts72\ti2\tS255\tS72", "Component", m.components()},
		{"FeatureComponents", "Feature_\tComponent_", "s38\ts72", "Feature_\tComponent_", nil},
		files, hashes,
		{"Media", "DiskId\tLastSequence\tDiskPrompt\tCabinet\tVolumeLabel\tSource", "i2\ti4\tL64\tS255\tS32\tS72", "DiskId",
			[][]string{{"1", strconv.Itoa(len(m.files)), "", "#" + cabinet, "", ""}}},
		{"Registry", "Registry\tRoot\tKey\tName\tValue\tComponent_", "s72\ti2\tl255\tL255\tL0\ts72", "Registry", registry()},
		{"Environment", "Environment\tName\tValue\tComponent_", "s72\tl255\tL255\ts72", "Environment",
			// "=-*": the machine's, set at the installation and taken back at the removal; "[~];": after what is there.
			[][]string{{"Path", "=-*PATH", "[~];[INSTALLFOLDER]", "Program"}}},
		{"ServiceInstall", "ServiceInstall\tName\tDisplayName\tServiceType\tStartType\tErrorControl\tLoadOrderGroup\tDependencies\tStartName\tPassword\tArguments\tComponent_\tDescription",
			"s72\ts255\tL255\ti4\ti4\ti4\tS255\tS255\tS255\tS255\tS255\ts72\tL255", "ServiceInstall",
			// Its own process; started with the system; a failure is logged. Without a name it is LocalSystem: Wintun
			// installs its driver when the interface is made.
			[][]string{{"Service", "pilot", "pilot", "16", "2", "1", "", "Tcpip[~]nsi[~]", "", "", "daemon --service", "Program", "The network that agents live on"}}},
		{"ServiceControl", "ServiceControl\tName\tEvent\tArguments\tWait\tComponent_", "s72\tl255\ti2\tL255\tI2\ts72", "ServiceControl",
			// Started (1) after an installation; stopped before it (2) and before a removal (32); deleted then (128).
			[][]string{{"Control", "pilot", "163", "", "1", "Program"}}},
		{"CustomAction", "Action\tType\tSource\tTarget\tExtendedType", "s72\ti2\tS72\tS255\tI4", "Action", customActions()},
	}
	for i := range t {
		if t[i].name == "FeatureComponents" {
			for _, c := range m.components() {
				t[i].rows = append(t[i].rows, []string{"Main", c[0]})
			}
		}
	}
	return append(t, sequences()...), nil
}

func (m msi) properties() [][]string {
	return [][]string{
		{"ProductName", m.product()},
		{"ProductVersion", m.version.base},
		{"ProductCode", uuid("product " + m.product() + " " + m.version.String() + " " + m.arch)},
		{"UpgradeCode", m.upgradeCode()},
		{"ProductLanguage", "1033"},
		{"Manufacturer", "The pilot project"},
		{"ALLUSERS", "1"}, // for the machine
		{"ARPURLINFOABOUT", "https://github.com/pilot-protocol/pilot"},
		{"ARPCOMMENTS", "pilot " + m.version.String() + ", overlay network for AI agents"},
		{"ARPNOMODIFY", "1"}, // there is one feature
		// Those that reach the part of the installation that has the system's rights.
		{"SecureCustomProperties", "NEWERFOUND;OLDERFOUND;PILOTTEST;PURGE"},
	}
}

// components are what is installed and removed as one. 256: it is 64-bit; 4: its key path is in Registry.
func (m msi) components() [][]string {
	rows := [][]string{{"Events", uuid("component Events"), "INSTALLFOLDER", "260", "", "EventMessageFile"}}
	seen := map[string]bool{}
	for _, f := range m.files {
		if !seen[f.component] { // its first file is its key path
			seen[f.component] = true
			rows = append(rows, []string{f.component, uuid("component " + f.component), "INSTALLFOLDER", "256", "", f.id})
		}
	}
	return rows
}

// registry makes us a source of the event log, with the texts of EventCreate.exe, which say what they are given.
func registry() [][]string {
	const key = `SYSTEM\CurrentControlSet\Services\EventLog\Application\pilot` // root 2: HKEY_LOCAL_MACHINE
	return [][]string{
		{"EventMessageFile", "2", key, "EventMessageFile", `#%%SystemRoot%\System32\EventCreate.exe`, "Events"},
		{"EventTypes", "2", key, "TypesSupported", "#7", "Events"},
	}
}

func (m msi) fileTables() (files, hashes table, err error) {
	files = table{"File", "File\tComponent_\tFileName\tFileSize\tVersion\tLanguage\tAttributes\tSequence", "s72\ts72\tl255\ti4\tS72\tS20\tI2\ti4", "File", nil}
	hashes = table{"MsiFileHash", "File_\tOptions\tHashPart1\tHashPart2\tHashPart3\tHashPart4", "s72\ti2\ti4\ti4\ti4\ti4", "File_", nil}
	for i, f := range m.files {
		data, err := os.ReadFile(f.source)
		if err != nil {
			return files, hashes, err
		}
		language := ""
		if f.version != "" {
			language = "1033"
		}
		// 512: without it the installation fails.
		files.rows = append(files.rows, []string{f.id, f.component, f.name, strconv.Itoa(len(data)), f.version, language, "512", strconv.Itoa(i + 1)})
		if f.version == "" { // by the hash Windows sees whether a file without a version has changed
			sum := md5.Sum(data) // as the table has it
			row := []string{f.id, "0"}
			for j := 0; j < 16; j += 4 {
				row = append(row, strconv.Itoa(int(int32(binary.LittleEndian.Uint32(sum[j:])))))
			}
			hashes.rows = append(hashes.rows, row)
		}
	}
	return files, hashes, nil
}

// customActions do what no table can. The firewall's rule is made by netsh, its documented tool: rules in the registry are
// read only when the firewall starts. It lets in what is meant for the program, whatever port it has: UDP from peers,
// and TCP where it is a coordinator or relay.
func customActions() [][]string {
	const rule = `advfirewall firewall %s rule name="pilot" program="[INSTALLFOLDER]pilot.exe"`
	netsh := func(format, rest string) string {
		return `"[System64Folder]netsh.exe" ` + fmt.Sprintf(rule, format) + rest
	}
	remove, add := netsh("delete", ""), netsh("add", " dir=in action=allow enable=yes profile=any")
	number := strconv.Itoa
	return [][]string{
		{"FirewallUndo", number(runRollback), "System64Folder", remove, ""},
		{"FirewallAdd", number(runSystem), "System64Folder", add, ""},
		{"FirewallRemove", number(runSystem), "System64Folder", remove, ""},
		// A daemon that was started by hand would hold the state folder, and with it the service.
		{"EndOther", number(runFile), "Program", "down", ""},
		// What a daemon that was killed left of its DNS settings, while the program is there to take it back.
		{"TakeBack", number(runFile), "Program", "down", ""},
		{"Purge", number(runSystem), "System64Folder", `"[System64Folder]cmd.exe" /c rmdir /s /q "[CommonAppDataFolder]pilot"`, ""},
	}
}

// sequences say what happens when.
func sequences() []table {
	costing := [][]string{{"CostInitialize", "", "800"}, {"FileCost", "", "900"}, {"CostFinalize", "", "1000"}}
	list := func(name string, rows ...[]string) table {
		return table{name, "Action\tCondition\tSequence", "s72\tS255\tI2", "Action", rows}
	}
	with := func(rows ...[]string) [][]string { return append(append([][]string{}, costing...), rows...) }
	return []table{
		list("InstallUISequence", with(
			[]string{"FindRelatedProducts", "", "25"}, []string{"LaunchConditions", "", "100"}, []string{"ValidateProductID", "", "700"},
			[]string{"MigrateFeatureStates", "", "1200"}, []string{"ExecuteAction", "", "1300"})...),
		list("InstallExecuteSequence", with(
			[]string{"FindRelatedProducts", "", "25"}, []string{"LaunchConditions", "", "100"}, []string{"ValidateProductID", "", "700"},
			[]string{"MigrateFeatureStates", "", "1200"},
			[]string{"InstallValidate", "", "1400"},
			[]string{"InstallInitialize", "", "1500"},
			// Here the old version goes in the same transaction: if the new one fails, it comes back.
			[]string{"RemoveExistingProducts", "", "1510"},
			[]string{"ProcessComponents", "", "1600"},
			[]string{"UnpublishFeatures", "", "1800"},
			[]string{"StopServices", "VersionNT", "1900"},
			[]string{"TakeBack", removing, "1950"},
			[]string{"DeleteServices", "VersionNT", "2000"},
			[]string{"RemoveRegistryValues", "", "2600"},
			[]string{"RemoveEnvironmentStrings", "", "3300"},
			[]string{"FirewallRemove", removing, "3400"},
			[]string{"RemoveFiles", "", "3500"},
			[]string{"Purge", purging, "3550"},
			[]string{"InstallFiles", "", "4000"},
			[]string{"WriteRegistryValues", "", "5000"},
			[]string{"WriteEnvironmentStrings", "", "5200"},
			[]string{"FirewallUndo", installing, "5690"},
			[]string{"FirewallAdd", installing, "5700"},
			[]string{"InstallServices", "VersionNT", "5800"},
			[]string{"EndOther", installing, "5850"},
			[]string{"StartServices", "VersionNT", "5900"},
			[]string{"RegisterUser", "", "6000"},
			[]string{"RegisterProduct", "", "6100"},
			[]string{"PublishFeatures", "", "6300"},
			[]string{"PublishProduct", "", "6400"},
			[]string{"InstallFinalize", "", "6600"})...),
		list("AdminUISequence", with([]string{"ExecuteAction", "", "1300"})...),
		list("AdminExecuteSequence", with([]string{"InstallValidate", "", "1400"}, []string{"InstallInitialize", "", "1500"},
			[]string{"InstallAdminPackage", "", "3900"}, []string{"InstallFiles", "", "4000"}, []string{"InstallFinalize", "", "6600"})...),
		list("AdvtExecuteSequence", []string{"CostInitialize", "", "800"}, []string{"CostFinalize", "", "1000"},
			[]string{"InstallValidate", "", "1400"}, []string{"InstallInitialize", "", "1500"}, []string{"PublishFeatures", "", "6300"},
			[]string{"PublishProduct", "", "6400"}, []string{"InstallFinalize", "", "6600"}),
	}
}

// summary is the information that Windows reads before the tables. contents tells packages apart that differ in anything.
func (m msi) summary(contents []byte) (table, error) {
	template, err := m.template()
	if err != nil {
		return table{}, err
	}
	at := m.time.UTC().Format("2006/01/02 15:04:05")
	return table{"_SummaryInformation", "PropertyId\tValue", "i2\tl255", "PropertyId", [][]string{
		{"1", "1252"}, {"2", "Installation Database"}, {"3", m.product() + " " + m.version.String()}, {"4", "The pilot project"},
		{"5", "Installer"}, {"6", "overlay network for AI agents"}, {"7", template},
		{"9", uuid(fmt.Sprintf("package %x", contents))}, {"12", at}, {"13", at},
		{"14", "500"}, // Windows Installer 5.0
		{"15", "2"},   // compressed, long names, needs elevation
		{"18", "pilot packaging"},
		{"19", "2"}, // best opened read-only
	}}, nil
}

// text is the table as an archive file (.idt), which msibuild reads.
func (t table) text() (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\r\n%s\r\n%s\t%s\r\n", t.columns, t.types, t.name, t.keys)
	n := strings.Count(t.columns, "\t") + 1
	for _, row := range t.rows {
		line := strings.Join(row, "\t")
		if len(row) != n || strings.Count(line, "\t") != n-1 || strings.ContainsAny(line, "\r\n") {
			return "", fmt.Errorf("table %s has %d columns, and not so this row: %q", t.name, n, row)
		}
		b.WriteString(line + "\r\n")
	}
	return b.String(), nil
}
