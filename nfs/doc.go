// Package nfs holds the nouns of the Network File System on Linux: option lists,
// exports, mounts, lines of fstab and the counters of a mount. It reads and prints
// the texts in which the kernel and nfs-utils tell of them, and does no other I/O.
//
// Options is one list for both sides, kept as it was written, so that what this
// package does not know is neither lost nor moved. [Options.Mount] says what such
// a list means to a client (nfs(5), mount(8)), [Options.Export] what it means to a
// server (exports(5)), [Options.With] changes it. What a list leaves out has the
// default of the manual page, so that what was asked for and what /proc tells of
// the mount can be compared: [Differences].
//
// The texts and their readers:
//
//	/etc/exports, /etc/exports.d, exportfs -s   ParseExports, FormatExports
//	/var/lib/nfs/etab                           ParseExports
//	exportfs -v                                 ParseExportfs
//	/etc/fstab, /proc/mounts                    ParseFstab, Entry.String
//	/proc/self/mountinfo                        ParseMountinfo, Mount.String
//	/proc/self/mountstats                       ParseMountstats
//
// Fields of these texts write white space and the backslash as a backslash and
// three octal digits; in the types of this package they stand as themselves.
package nfs
