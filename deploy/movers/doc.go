// Package movers measures what moves files between two hosts: glance-dtn and its
// peers, one after the other in every round, over a local network and over wide area
// paths. `make bench-movers` runs it; the report is in dist/movers.
//
// `make eval-relay` measures the ways of a file between four hosts, straight, stored and
// cut through, beside what package tuning/routing predicts; that report is in dist/relay.
//
// `make grid-pcp` measures glance-dtn alone with each PCP of a grid, over wide area paths of
// several kinds; its rows are for package advice.
//
// The hosts are machines of deploy/lab, files lie in memory at both ends, and every
// file that arrived is compared with what was sent.
package movers
