// Package host reads and changes what this host does with NFS: what its server
// exports and how, and with which options its client mounts.
//
// A change has three parts. [Host.Read] tells the [State], [Plan] makes of it and of
// a [Wish] the list of [Change] without touching anything, [Host.Apply] carries it
// out and [Host.Undo] restores what was there. Before the first change an undo
// record in the state directory says durably what that was; it is removed when all
// of it is there again. So after a crash between any two steps Undo repairs, and it
// may be repeated. Nobody's files are written but this package's own:
//
//	/etc/exports.d/00-glance-dtn.exports             exports, see exports(5)
//	/etc/systemd/system/UNIT.d/zz-glance-dtn.conf    options of a mount whose unit systemd has
//	/etc/systemd/system/UNIT                         a mount for which it has none
//	DIR/fstab                                        mounts of a host without systemd
//	DIR/undo.json                                    the undo record
//	DIR/scratch                                      the mount point of Host.Scratch
//
// The first four say so and bear a checksum: what somebody else has written there
// since is neither replaced nor removed, and Apply and Undo say so before they do
// anything.
//
// # Exports
//
// An export changes at once, for mounted clients too, by exportfs -i -o, which
// touches that entry of the table alone. (exportfs -r would also drop what was
// exported by hand, and load edits that nobody has loaded yet.) The drop-in makes it
// last: exportfs(8) takes the first of several entries for a path and a client,
// reads /etc/exports before /etc/exports.d and that in the order of strverscmp(3),
// tells of the others as duplicates and ends with status 1. So the drop-in has a name
// that comes first, and there is none for what stands in /etc/exports: that change
// holds until exportfs -r, and the Change says which line to edit.
//
// # Mounts
//
// mount -o remount changes ro, sync and the VFS's other flags, without disturbing
// anyone. It refuses the options of nfs(5), which need umount and mount; meanwhile
// the mount point is empty, and programs with open files hold the mount. The options
// that hold are taken as the base, not those of a file: what is wished is changed,
// everything else stays. What a live mount does not show (retry=, nofail, _netdev,
// x-...) is taken from the unit or the line of fstab that made it; of a line of fstab
// systemd has made a unit, in which bg has become what it means there, see
// systemd.mount(5). Where that has an automount too, it stays, and mounts what the
// unit says by then. Both happen in the mount namespace of this process.
//
// The kernel grants something else than was asked for without saying so: Apply
// reads back what holds, and tells the difference.
//
// All of it needs root. Calls may be made at once; of those that change something
// in one state directory, one runs and the others fail with durable.ErrLocked.
package host
