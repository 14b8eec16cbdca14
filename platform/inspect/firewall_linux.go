// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"fmt"
	"os/exec"
	"time"
)

// firewallLimit bounds the time for reading all rules; some hosts have very many.
const firewallLimit = 5 * time.Second

// firewall reads the rules of nftables, to which today's iptables writes too. Only root may, and the program nft knows how.
func firewall(ctx context.Context) ([]Chain, error) {
	if !isRoot() {
		return nil, fmt.Errorf("the firewall's rules are root's to read")
	}
	nft, err := exec.LookPath("nft")
	if err != nil {
		return nil, fmt.Errorf("the program nft is not there to read the firewall's rules")
	}
	ctx, cancel := context.WithTimeout(ctx, firewallLimit)
	defer cancel()
	out, err := exec.CommandContext(ctx, nft, "--json", "list", "ruleset").Output()
	if err != nil {
		return nil, fmt.Errorf("nft: %w", err)
	}
	return parseRuleset(out)
}
