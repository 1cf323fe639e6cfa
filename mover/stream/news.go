package stream

import "sync"

// news tells those who wait that something has changed. Nobody waits most of the
// time, and then it costs next to nothing.
type news struct {
	mu   sync.Mutex
	next chan struct{} // closed by the next tell; nil while nobody waits
}

// wait returns a channel that the next tell closes.
func (n *news) wait() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.next == nil {
		n.next = make(chan struct{})
	}
	return n.next
}

func (n *news) tell() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.next != nil {
		close(n.next)
		n.next = nil
	}
}
