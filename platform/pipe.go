// SPDX-License-Identifier: Apache-2.0

package platform

// pipeSDDL is the security descriptor of the daemon's pipe: nobody over the network, and all rights for SYSTEM, the
// administrators and the daemon's own user. The list is protected, so nothing is inherited into it.
func pipeSDDL(sid string) string {
	return "O:" + sid + "D:P(D;;GA;;;NU)(A;;GA;;;SY)(A;;GA;;;BA)(A;;GA;;;" + sid + ")"
}

// folderSDDL is that of a private folder: the same ones, and what is made inside it inherits this.
func folderSDDL(sid string) string {
	return "O:" + sid + "D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;FA;;;" + sid + ")"
}
