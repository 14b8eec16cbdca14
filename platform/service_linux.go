// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

const (
	serviceUnit    = "pilot.service"
	serviceTimeout = 90 * time.Second // systemd's own limit for a unit to start
	queryTimeout   = 5 * time.Second
)

// SystemService is the unit pilot.service, where systemd runs this system. It is about the whole host, and has nothing
// to do with a daemon on another state folder.
func SystemService() Service {
	// sd_booted(3)
	if info, err := os.Lstat("/run/systemd/system"); err != nil || !info.IsDir() {
		return noService{}
	}
	return systemdUnit{name: serviceUnit}
}

type systemdUnit struct{ name string }

func (u systemdUnit) property(name string) string {
	ctx, cancel := context.WithTimeout(context.Background(), queryTimeout)
	defer cancel()
	conn, err := systemd.NewWithContext(ctx)
	if err != nil {
		return ""
	}
	defer conn.Close()
	p, err := conn.GetUnitPropertyContext(ctx, u.name, name)
	if err != nil {
		return ""
	}
	s, _ := p.Value.Value().(string)
	return s
}

// Log implements Service.
func (systemdUnit) Log() string { return "journalctl -u pilot" }

// Host implements Service: systemd is told over a socket (sd_notify), and tells by signals.
func (systemdUnit) Host() ServiceHost { return nil }

func (u systemdUnit) Installed() bool { return u.property("LoadState") == "loaded" }

func (u systemdUnit) Running() bool {
	switch u.property("ActiveState") {
	case "active", "activating", "reloading":
		return true
	default:
		return false
	}
}

func (u systemdUnit) Start() error {
	return u.job("start", func(ctx context.Context, c *systemd.Conn, done chan<- string) error {
		_, err := c.StartUnitContext(ctx, u.name, "replace", done)
		return err
	})
}

func (u systemdUnit) Stop() error {
	return u.job("stop", func(ctx context.Context, c *systemd.Conn, done chan<- string) error {
		_, err := c.StopUnitContext(ctx, u.name, "replace", done)
		return err
	})
}

// job asks for something and waits until systemd has done it.
func (u systemdUnit) job(verb string, ask func(context.Context, *systemd.Conn, chan<- string) error) error {
	if !u.Installed() {
		return fmt.Errorf("%s %s: %w", verb, u.name, ErrUnsupported)
	}
	ctx, cancel := context.WithTimeout(context.Background(), serviceTimeout)
	defer cancel()
	conn, err := systemd.NewWithContext(ctx)
	if err != nil {
		return fmt.Errorf("%s %s: %w", verb, u.name, err)
	}
	defer conn.Close()
	done := make(chan string, 1)
	if err := ask(ctx, conn, done); err != nil {
		if refused(err) {
			err = fmt.Errorf("%w (%w)", os.ErrPermission, err)
		}
		return fmt.Errorf("%s %s: %w", verb, u.name, err)
	}
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("%s %s: systemd says %s; see journalctl -u %s", verb, u.name, result, u.name)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s %s: %w", verb, u.name, ctx.Err())
	}
}

// refused says whether systemd, or the policy that it asks, doesn't let this user do that.
func refused(err error) bool {
	var e dbus.Error
	return errors.As(err, &e) && (e.Name == "org.freedesktop.DBus.Error.AccessDenied" ||
		e.Name == "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired")
}
