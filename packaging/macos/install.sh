#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Usage: sudo ./install.sh, in the unpacked archive. Installs pilot or upgrades it, and starts it as a service of launchd. With
# DESTDIR it fills another folder than the system's, and starts nothing.
set -eu
cd "$(dirname "$0")"
label=com.pilot-protocol.pilot
root=${DESTDIR:-}
if [ -z "$root" ]; then
	[ "$(uname -s)" = Darwin ] || { echo "install.sh: this is for macOS" >&2; exit 1; }
	[ "$(id -u)" = 0 ] || { echo "install.sh: needs root: sudo ./install.sh" >&2; exit 1; }
fi

umask 022
mkdir -p "$root/usr/local/bin" "$root/usr/local/share/man/man1" "$root/usr/local/share/zsh/site-functions" \
	"$root/usr/local/share/fish/vendor_completions.d" "$root/usr/local/etc/bash_completion.d" "$root/Library/LaunchDaemons"
# Written beside and renamed: a program that runs is never changed, and macOS would kill it if it were.
put() {
	cp "$1" "$root$3.new"
	chmod "$2" "$root$3.new"
	[ -n "$root" ] || chown 0:0 "$3.new"
	mv -f "$root$3.new" "$root$3"
}
put pilot 755 /usr/local/bin/pilot
for page in man/*.1.gz; do
	put "$page" 644 "/usr/local/share/man/man1/${page#man/}"
done
put completions/_pilot 644 /usr/local/share/zsh/site-functions/_pilot
put completions/pilot.fish 644 /usr/local/share/fish/vendor_completions.d/pilot.fish
put completions/pilot.bash 644 /usr/local/etc/bash_completion.d/pilot
put "launchd/$label.plist" 644 "/Library/LaunchDaemons/$label.plist"
[ -z "$root" ] || exit 0

# A download carries a mark by which macOS asks before it runs the program.
xattr -d com.apple.quarantine /usr/local/bin/pilot 2>/dev/null || true
# Its members may control the daemon.
dseditgroup -o read pilot >/dev/null 2>&1 || dseditgroup -o create -r "pilot daemon" pilot
# The version before this one, or a daemon that was started by hand, which would hold the state folder.
launchctl bootout "system/$label" 2>/dev/null || true
/usr/local/bin/pilot down >/dev/null 2>&1 || true
launchctl enable "system/$label"
launchctl bootstrap system "/Library/LaunchDaemons/$label.plist"
echo "pilot is installed and runs; next: sudo pilot up, or sudo pilot up pilot://…"
