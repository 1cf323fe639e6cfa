// Package advice measures how good the advice of tuning/pcp is on paths that history has
// not seen, beside fixed PCPs and those that other movers would choose. `make eval-pcp`
// runs it; the report is in dist/pcp.
//
// The observations are the simulator's, and those of each file testdata/*.csv, which has
// the form of tuning/history: a grid of PCPs that was measured in each of some conditions.
// `make grid-pcp` measures testdata/grid.csv with the engine, see package movers.
package advice
