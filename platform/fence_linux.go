// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// Fence keeps what bears an overlay's addresses from coming in by other interfaces than the overlay's.
//
// Linux takes a packet for any of its addresses from any interface (the weak host model of RFC 1122). Without a fence
// somebody on the same link could send to an agent's address past the tunnel, under a peer's address or under their own, and
// so past every consent. With it this host drops, at the priority "raw", before a firewall's usual rules:
//
//   - what comes from the network's prefix, to whomever: outside of a tunnel no such packet is genuine;
//   - what is for the interface's own address, from whomever.
//
// What comes by lo, which is this host itself, passes, and so does what comes by interfaces whose names begin with
// [InterfacePrefix]: daemons of other networks may have some. What is forwarded to other agents, as from containers whose
// addresses the host translates, passes too.
//
// A fence is a table of nf_tables that is named for its interface, so that those of several daemons have nothing to do with
// each other. The kernel lets nobody else change it, and removes it as soon as this process ends, however that happens.
// Kernels before 5.12 don't do that: there Refresh puts it back if somebody takes it away, and where a process was killed it
// stays, without effect, until the next fence of the same name. All methods may be called at once.
type Fence struct {
	table string
	build []nftMessage // the chain and its rules

	mu     sync.Mutex
	socket *nftSocket // guarded by mu; nil: there is no fence
	owned  bool       // guarded by mu; the table is ours as long as the socket is open
}

const (
	fenceChain = "prerouting"
	fenceRules = 4
	// nftOwner makes a table that belongs to the socket which made it (NFT_TABLE_F_OWNER, Linux 5.12).
	nftOwner = 2
	// beforeConntrack is the priority "raw": rules that come after it don't see what was dropped, and no state is kept of it.
	beforeConntrack = -300
	netfilterDrop   = 0
	netfilterAccept = 1
)

// NewFence prepares the fence of an interface, whose route is for whole bytes. It is not there before Refresh.
func NewFence(i Interface) *Fence {
	table := i.Name
	chain := nftMessage{unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, slices.Concat(
		nftText(unix.NFTA_CHAIN_TABLE, table), nftText(unix.NFTA_CHAIN_NAME, fenceChain), nftText(unix.NFTA_CHAIN_TYPE, "filter"),
		nftNested(unix.NFTA_CHAIN_HOOK, nftNumber(unix.NFTA_HOOK_HOOKNUM, unix.NF_INET_PRE_ROUTING),
			nftNumber(unix.NFTA_HOOK_PRIORITY, beforeConntrack&0xffffffff)),
	)}
	source, self := i.Route.Addr().As16(), i.Address.As16()
	return &Fence{table: table, build: []nftMessage{
		chain,
		fenceRule(table, "this host itself", append(interfaceIs("lo\x00"), verdict(netfilterAccept)...)),
		fenceRule(table, "overlays", append(interfaceIs(InterfacePrefix), verdict(netfilterAccept)...)),
		fenceRule(table, "an agent's source address, outside of the tunnel", fenced(sourceOffset, source[:i.Route.Bits()/8])),
		fenceRule(table, "to this agent, past the tunnel", fenced(destinationOffset, self[:])),
	}}
}

// Offsets of the addresses in an IPv6 header.
const (
	sourceOffset      = 8
	destinationOffset = 24
)

// fenceRule appends a rule to the fence's chain. The comment is for people who list the rules.
func fenceRule(table, comment string, expressions []byte) nftMessage {
	const commentKind = 0 // of libnftnl's NFTNL_UDATA_RULE_COMMENT
	note := slices.Concat([]byte{commentKind, byte(len(comment) + 1)}, []byte(comment), []byte{0})
	return nftMessage{unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE | unix.NLM_F_APPEND, slices.Concat(
		nftText(unix.NFTA_RULE_TABLE, table), nftText(unix.NFTA_RULE_CHAIN, fenceChain),
		nftNested(unix.NFTA_RULE_EXPRESSIONS, expressions), nftAttribute(unix.NFTA_RULE_USERDATA, note),
	)}
}

// interfaceIs goes on with the rule if the name of the interface by which a packet came begins so.
func interfaceIs(name string) []byte {
	return slices.Concat(
		nftExpression("meta", nftNumber(unix.NFTA_META_KEY, unix.NFT_META_IIFNAME), nftNumber(unix.NFTA_META_DREG, unix.NFT_REG_1)),
		equals([]byte(name)))
}

// fenced counts and drops a packet whose header has these bytes.
func fenced(offset uint32, value []byte) []byte {
	return slices.Concat(
		nftExpression("payload", nftNumber(unix.NFTA_PAYLOAD_DREG, unix.NFT_REG_1), nftNumber(unix.NFTA_PAYLOAD_BASE, unix.NFT_PAYLOAD_NETWORK_HEADER),
			nftNumber(unix.NFTA_PAYLOAD_OFFSET, offset), nftNumber(unix.NFTA_PAYLOAD_LEN, uint32(len(value)))),
		equals(value), nftExpression("counter"), verdict(netfilterDrop))
}

func equals(value []byte) []byte {
	return nftExpression("cmp", nftNumber(unix.NFTA_CMP_SREG, unix.NFT_REG_1), nftNumber(unix.NFTA_CMP_OP, unix.NFT_CMP_EQ),
		nftNested(unix.NFTA_CMP_DATA, nftAttribute(unix.NFTA_DATA_VALUE, value)))
}

func verdict(code uint32) []byte {
	return nftExpression("immediate", nftNumber(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT),
		nftNested(unix.NFTA_IMMEDIATE_DATA, nftNested(unix.NFTA_DATA_VERDICT, nftNumber(unix.NFTA_VERDICT_CODE, code))))
}

// Refresh sees to it that the fence is there, and reports whether it was but is no more, and had to be put back. Its error
// says why there is none: fs.ErrPermission without CAP_NET_ADMIN or where the table is somebody else's, another one where
// the kernel has no nf_tables.
func (f *Fence) Refresh() (again bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.socket != nil {
		if f.owned {
			return false, nil
		}
		rules, err := f.socket.rules(f.table, fenceChain)
		if err == nil && len(rules) == fenceRules {
			return false, nil
		}
		again = true
		if err := f.leaveLocked(); err != nil {
			return again, err
		}
	}
	err = f.putLocked(nftOwner)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		err = f.putLocked(0)
	}
	return again, err
}

// putLocked makes the table, whatever there was under its name.
func (f *Fence) putLocked(flags uint32) error {
	s, err := openNFT()
	if err != nil {
		return fmt.Errorf("fence %s: %w", f.table, err)
	}
	name := nftText(unix.NFTA_TABLE_NAME, f.table)
	messages := append([]nftMessage{
		{unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, name}, // so that there is something to delete
		{unix.NFT_MSG_DELTABLE, 0, name},
		{unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, append(slices.Clone(name), nftNumber(unix.NFTA_TABLE_FLAGS, flags)...)},
	}, f.build...)
	if err := s.commit(messages...); err != nil {
		return errors.Join(fmt.Errorf("fence %s: %w", f.table, err), s.close())
	}
	f.socket, f.owned = s, flags&nftOwner != 0
	return nil
}

// leaveLocked gives up the socket, and with it a table that is ours.
func (f *Fence) leaveLocked() error {
	s := f.socket
	f.socket = nil
	return s.close()
}

// Dropped is how many packets the fence has kept out since it is there.
func (f *Fence) Dropped() (packets uint64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.socket == nil {
		return 0, nil
	}
	rules, err := f.socket.rules(f.table, fenceChain)
	for _, r := range rules {
		packets += nftCounted(r)
	}
	return packets, err
}

// Close takes the fence away. The interface goes first: without its fence it would be open.
func (f *Fence) Close() (err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.socket == nil {
		return nil
	}
	if !f.owned {
		err = f.socket.commit(nftMessage{unix.NFT_MSG_DELTABLE, 0, nftText(unix.NFTA_TABLE_NAME, f.table)})
		if errors.Is(err, unix.ENOENT) {
			err = nil
		}
	}
	return errors.Join(err, f.leaveLocked())
}
