// Package movers measures what moves files between two hosts: glance-dtn and its
// peers, one after the other in every round, over a local network and over wide area
// paths. `make bench-movers` runs it; the report is in dist/movers.
//
// The hosts are machines of deploy/lab, files lie in memory at both ends, and every
// file that arrived is compared with what was sent.
package movers
