#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Usage: sudo ./uninstall.sh [--purge]. Ends pilot and removes it. Identity and network stay, unless it is --purge: then the
# state, the log and the group go too.
set -eu
label=com.pilot-protocol.pilot
root=${DESTDIR:-}
purge=
case "${1:-}" in
--purge) purge=yes ;;
"") ;;
*) echo "usage: uninstall.sh [--purge]" >&2; exit 2 ;;
esac
if [ -z "$root" ]; then
	[ "$(uname -s)" = Darwin ] || { echo "uninstall.sh: this is for macOS" >&2; exit 1; }
	[ "$(id -u)" = 0 ] || { echo "uninstall.sh: needs root: sudo ./uninstall.sh" >&2; exit 1; }
	launchctl bootout "system/$label" 2>/dev/null || true
	# What one that was killed left behind; while the program is still there to do it.
	/usr/local/bin/pilot down >/dev/null 2>&1 || true
fi
rm -f "$root/Library/LaunchDaemons/$label.plist" "$root/usr/local/bin/pilot" \
	"$root/usr/local/share/zsh/site-functions/_pilot" "$root/usr/local/share/fish/vendor_completions.d/pilot.fish" \
	"$root/usr/local/etc/bash_completion.d/pilot"
rm -f "$root/usr/local/share/man/man1/pilot.1.gz" "$root"/usr/local/share/man/man1/pilot-*.1.gz
[ -n "$purge" ] || exit 0
rm -rf "$root/Library/Application Support/pilot"
rm -f "$root/Library/Logs/pilot.log"
[ -n "$root" ] || dseditgroup -o delete pilot 2>/dev/null || true
