// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
	wgtun "golang.zx2c4.com/wireguard/tun"
)

func open(name string, mtu int) (Device, error) {
	dev, err := wgtun.CreateTUN(utunName(name), mtu)
	if err != nil {
		e := &OpenError{Name: name, Err: err}
		switch {
		case errors.Is(err, os.ErrPermission):
			e.Hint = "run as root: sudo pilot …"
		case errors.Is(err, unix.EBUSY):
			e.Err = fmt.Errorf("%w: %w", ErrBusy, err)
			e.Hint = "use the name utun, and the system chooses a free one"
		}
		return nil, e
	}
	got, err := dev.Name()
	if err != nil {
		dev.Close()
		return nil, &OpenError{Name: name, Err: err}
	}
	return newNative(dev, got, mtu), nil
}
