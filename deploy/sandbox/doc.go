// Package sandbox is a script that runs two real OpenStack sites with their DTNs
// and agents on one machine, and the tests that use them: an image goes from
// one site to the other while the machinery is disturbed.
package sandbox
