// Package hosttcp fits this host's TCP to a path: how much a connection may buffer,
// which congestion control it has, how its packets leave.
//
// A change has three parts. [Host.Read] tells the [State], [Plan] makes of it and of a
// path the list of [Change] without touching anything, [Host.Apply] carries it out and
// [Host.Undo] restores what was there. Before the first change an undo record in the
// state directory says durably what that was; so after a crash between any two steps, or
// a restart of the host, Undo repairs, and it may be repeated. Besides the kernel's
// settings (sysctls) two files are written:
//
//	/etc/sysctl.d/zz-glance-dtn.conf   the settings, for the host's next start
//	DIR/undo.json                      the undo record
//
// The first says so and bears a checksum: what somebody else has written there since is
// neither replaced nor removed. What somebody else has set a sysctl to since stays, too.
//
// A setting that this kernel has not, one that is read-only (as in a container) and one
// that this user may not change are three answers, and none keeps the others from being
// set.
//
// What sysctl.d cannot keep (rings and queues of a NIC, its MTU, interrupts, the CPUs'
// governor) is [Advice] alone, with the commands that do it and take it back.
package hosttcp
