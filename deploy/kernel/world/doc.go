// Package world tests the whole way of an image over real NFS: two sites of the
// user-mode-linux guest of deploy/kernel, at each the real agent and DTN, a kernel
// NFS server on the DTN and its export mounted on the controller. Only Keystone and
// Glance are stand-ins, those of glance/glancetest.
package world
