// SPDX-License-Identifier: Apache-2.0

package platform

import "fmt"

// ConfigureInterface gives an interface its address, MTU and route. Doing it again changes nothing. It all goes away
// with the adapter.
func ConfigureInterface(i Interface) error {
	if err := i.validate(); err != nil {
		return err
	}
	mtu, addAddress, setAddress, addRoute, setRoute := netshCommands(i)
	for _, c := range []command{netshNoDAD(i.Name), mtu} {
		if err := c.run(); err != nil {
			return err
		}
	}
	for _, try := range [][2]command{{addAddress, setAddress}, {addRoute, setRoute}} {
		if first := try[0].run(); first != nil {
			if err := try[1].run(); err != nil {
				return fmt.Errorf("%w (after %w)", err, first)
			}
		}
	}
	return nil
}
