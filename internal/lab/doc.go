// SPDX-License-Identifier: Apache-2.0

// Package lab builds small real networks out of Linux namespaces and runs real programs in them.
//
// A [Lab] has bridges, and hosts that are plugged into them. A [Host] has its own network, mount, process, UTS and
// IPC namespaces: its own interfaces and routes, its own /etc, /run, /var/lib and /proc, so that a daemon there finds
// the paths that it has on a real machine, and finds no D-Bus, no service manager and no process of another host.
//
// Nothing has a name outside of the lab, so labs never collide and nothing is left over: the first process of a host
// waits on a pipe that its lab holds. When the lab ends, however it ends, the pipe closes, that process exits, and
// with it the kernel ends all others of the host and takes down namespaces, links and mounts. Only a folder under the
// temporary directory can outlive a crash; the next lab removes it.
//
// All of it needs Linux and root. On other systems the package is empty.
package lab
