// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/windows"
	wgtun "golang.zx2c4.com/wireguard/tun"
)

func open(name string, mtu int) (Device, error) {
	// The library panics, or returns an error without a type, when its DLL is absent; so look for it first.
	if err := findWintun(); err != nil {
		return nil, &OpenError{
			Name: name,
			Err:  fmt.Errorf("%w: wintun.dll: %w", ErrNoTUN, err),
			Hint: "put wintun.dll of this processor's kind, from https://www.wintun.net, beside pilot.exe",
		}
	}
	dev, err := wgtun.CreateTUN(name, mtu)
	if err != nil {
		e := &OpenError{Name: name, Err: err}
		if errors.Is(err, os.ErrPermission) {
			e.Hint = "run as Administrator"
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

// findWintun loads the DLL from where the library will look for it (beside the program, or System32), never from the
// working directory.
func findWintun() error {
	const from = windows.LOAD_LIBRARY_SEARCH_APPLICATION_DIR | windows.LOAD_LIBRARY_SEARCH_SYSTEM32
	h, err := windows.LoadLibraryEx("wintun.dll", 0, from)
	if err != nil {
		return err
	}
	return windows.FreeLibrary(h)
}
