// Package glancedtn is the root of the glance-dtn repository and holds no code: its
// test keeps the house in order. The binary is cmd/glance-dtn; ARCHITECTURE.md says
// what the other folders are.
package glancedtn
