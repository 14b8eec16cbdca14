// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/windows"
)

// SystemSealer returns the Data Protection API's, with the machine's key: any program on this host could open what it
// sealed, if it got at the file, whose access list keeps all but SYSTEM, administrators and this user from that.
func SystemSealer() (Sealer, error) { return dataProtection{}, nil }

type dataProtection struct{}

const protectFlags = windows.CRYPTPROTECT_LOCAL_MACHINE | windows.CRYPTPROTECT_UI_FORBIDDEN

func (dataProtection) Name() string { return SealedByDPAPI }

func (dataProtection) Seal(label string, secret []byte) ([]byte, error) {
	if len(secret) == 0 {
		return nil, errors.New("nothing to seal")
	}
	in, mixed, out := blob(secret), blob(entropy(label)), windows.DataBlob{}
	if err := windows.CryptProtectData(in, nil, mixed, 0, nil, protectFlags, &out); err != nil {
		return nil, err
	}
	return takeBlob(out), nil
}

func (dataProtection) Open(label string, sealed []byte) ([]byte, error) {
	if len(sealed) == 0 {
		return nil, sealedError(SealedByDPAPI, errors.New("nothing to open"))
	}
	in, mixed, out := blob(sealed), blob(entropy(label)), windows.DataBlob{}
	if err := windows.CryptUnprotectData(in, nil, mixed, 0, nil, protectFlags, &out); err != nil {
		return nil, sealedError(SealedByDPAPI, err)
	}
	return takeBlob(out), nil
}

func (dataProtection) Forget(string, []byte) error { return nil }

func blob(data []byte) *windows.DataBlob {
	return &windows.DataBlob{Size: uint32(len(data)), Data: unsafe.SliceData(data)}
}

// takeBlob copies what the system has allocated, and clears and frees that.
func takeBlob(b windows.DataBlob) []byte {
	theirs := unsafe.Slice(b.Data, b.Size)
	out := append([]byte{}, theirs...)
	clear(theirs)
	_, _ = windows.LocalFree(windows.Handle(unsafe.Pointer(b.Data))) // nothing is left to be done where it fails
	return out
}
