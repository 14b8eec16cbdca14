// SPDX-License-Identifier: Apache-2.0

package platform

// ConfigureInterface gives an interface its address, MTU and route, and brings it up. Doing it again changes nothing.
// It all goes away with the device.
func ConfigureInterface(i Interface) error {
	if err := i.validate(); err != nil {
		return err
	}
	setup, unroute, route := ifconfigCommands(i)
	for _, c := range setup {
		if err := c.run(); err != nil {
			return err
		}
	}
	_ = unroute.run() // fails when there is none, as is usual
	return route.run()
}
