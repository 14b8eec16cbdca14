// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Emulator is a bad cable between a host and its bridge: a program in the test's own process that carries each frame
// from one TAP interface to another, so it needs nothing of the kernel's traffic control.
//
// The TAP interfaces offer no offloads. The kernel itself therefore cuts bursts into frames of the link's MTU and
// fills in their checksums before a frame gets here, as a real network interface would, while the hosts' own
// interfaces go on taking bursts from programs.
type Emulator struct {
	lab     *Lab
	out, in *direction // from the host, to the host
	stop    int        // an eventfd: readable once the end has come
	files   [2]int     // the TAP interfaces: the host's side, the bridge's side
	running sync.WaitGroup
}

// Impair puts an emulator between the host and its bridge, once for each link: out is for the frames that the host
// sends, in for those that it gets. The seed fixes which frames are lost, doubled and late. It works until the lab
// ends. From now on [Link.Up] cuts the cable behind the emulator: the host still sees a link.
func (k *Link) Impair(seed uint64, out, in Impairment) *Emulator {
	l := k.host.lab
	l.tb.Helper()
	e := &Emulator{lab: l, out: newDirection(seed, 0), in: newDirection(seed, 1)}
	e.Set(out, in)
	near, far, joint := k.port+"n", k.port+"f", k.port+"b"
	if err := l.fabric.In(func() error { return e.open(near, far) }); err != nil {
		l.tb.Fatalf("lab: impair the link of %s: %v", k.host.name, err)
	}
	// Before the lab itself is taken down: cleanups run last to first.
	l.tb.Cleanup(e.close)
	plug := `set -e
near=$1 far=$2 joint=$3 port=$4
bridge=$(ip -o link show dev $port | sed -n 's/.* master \([^ ]*\) .*/\1/p')
ip link add $joint type bridge forward_delay 0 mcast_snooping 0
for name in $near $far $joint; do
	sysctl -q -w net.ipv6.conf.$name.disable_ipv6=1
done
ip link set $near txqueuelen 4096 master $joint up
ip link set $far txqueuelen 4096 master $bridge up
ip link set $port master $joint
ip link set $joint up
`
	l.fabric.must("bash", "-c", plug, "impair", near, far, joint, k.port)
	k.port = far
	e.running.Go(func() { e.carry(e.files[0], e.files[1], e.out) })
	e.running.Go(func() { e.carry(e.files[1], e.files[0], e.in) })
	return e
}

// Set changes what happens to the frames that are still to come.
func (e *Emulator) Set(out, in Impairment) {
	e.lab.tb.Helper()
	out, errOut := out.withDefaults()
	in, errIn := in.withDefaults()
	if err := errors.Join(errOut, errIn); err != nil {
		e.lab.tb.Fatalf("lab: impairment: %v", err)
	}
	e.out.set(out)
	e.in.set(in)
}

// Counters tell what became of the frames from the host and to the host, since the beginning.
func (e *Emulator) Counters() (out, in Counters) { return e.out.count(), e.in.count() }

// open makes the TAP interfaces in the network of the calling thread.
func (e *Emulator) open(names ...string) (err error) {
	if e.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	for i, name := range names {
		if e.files[i], err = openTAP(name); err != nil {
			return err
		}
	}
	return nil
}

// openTAP makes an interface whose frames are read from and written to a file; it is gone when the file is closed.
func openTAP(name string) (int, error) {
	const device = "/dev/net/tun"
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: device, Err: err}
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		// Without virtio headers, so without offloads.
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("make the interface %s: %w", name, err)
	}
	return fd, nil
}

func (e *Emulator) close() {
	_, _ = unix.Write(e.stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	e.running.Wait()
	for _, fd := range []int{e.files[0], e.files[1], e.stop} {
		_ = unix.Close(fd)
	}
}

// carry takes frames from one interface to the other until the emulator is closed or its interfaces are gone.
func (e *Emulator) carry(from, to int, d *direction) {
	frame := make([]byte, 2*maxFrame) // a longer frame is cut off, but not to a length that is allowed
	for {
		more, err := receive(from, frame, d)
		if err != nil {
			return
		}
		now := time.Now()
		for p := d.take(now); p != nil; p = d.take(now) {
			_, err := unix.Write(to, p.frame[:p.size])
			d.done(p, err == nil)
		}
		var patience *unix.Timespec // nil: for ever
		if wait, ok := d.next(time.Now()); ok {
			t := unix.NsecToTimespec(int64(wait))
			patience = &t
		}
		if more {
			patience = &unix.Timespec{}
		}
		events := []unix.PollFd{{Fd: int32(e.stop), Events: unix.POLLIN}, {Fd: int32(from), Events: unix.POLLIN}}
		if _, err := unix.Ppoll(events, patience, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		if events[0].Revents != 0 {
			return
		}
	}
}

// receive takes in the frames that wait, not too many at once. It tells whether there may be more.
func receive(from int, frame []byte, d *direction) (more bool, err error) {
	for range 64 {
		n, err := unix.Read(from, frame)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return false, nil
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return false, err
		default:
			d.offer(time.Now(), frame[:n])
		}
	}
	return true, nil
}
