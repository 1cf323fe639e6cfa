// Package kernel runs this module's tests for a real NFS server and client in
// user-mode-linux: a Linux kernel that is an ordinary process, with Debian's nfsd,
// NFS client, netem and H-TCP as its modules. Neither the host's kernel nor its
// mounts and networks are touched.
//
// There is no list of such tests. A package whose tests import deploy/kernel/guest
// is built as a static test binary and has a guest of its own, in which its tests
// named TestKernel... run; each is a subtest here, and one that is skipped there
// fails. GLANCE_DTN names the glance-dtn binary of this tree. See package guest for
// what such a test may ask for.
package kernel
