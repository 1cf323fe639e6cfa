// Package tcp asks the kernel what it knows of a connection's path, and tells it how to send
// over it, tcp(7). Another kernel than Linux knows nothing, and goes its own way.
package tcp

import (
	"os"
	"strconv"
	"strings"
)

// SendBuffer is the most that the kernel gives a connection's send buffer, in bytes; 0: not
// known.
func SendBuffer() int {
	text, err := os.ReadFile("/proc/sys/net/ipv4/tcp_wmem")
	if f := strings.Fields(string(text)); err == nil && len(f) == 3 {
		n, _ := strconv.Atoi(f[2])
		return n
	}
	return 0
}
