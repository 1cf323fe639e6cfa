package agent

import (
	"fmt"
	"maps"
	"sync"
	"time"
)

const (
	refusedEvery = time.Hour // so often the refusal of a site is logged at most
	maxRefused   = 64        // sites whose refusals are logged in this time
)

// strangers are the sites that ask and are no peers. Its zero value is ready.
type strangers struct {
	mu     sync.Mutex           // guards what follows
	logged map[string]time.Time // by site
}

// worthLogging reports whether a refusal of the site is to be logged now.
func (s *strangers) worthLogging(site string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(s.logged, func(_ string, at time.Time) bool { return now.Sub(at) >= refusedEvery })
	if _, ok := s.logged[site]; ok || len(s.logged) >= maxRefused {
		return false
	}
	if s.logged == nil {
		s.logged = map[string]time.Time{}
	}
	s.logged[site] = now
	return true
}

// asker is peer for a site whose agent asks this one; ErrForbidden. The operators of both
// sites learn of a refusal: those of the other by the error, those of this one by the log.
func (a *Agent) asker(site string) (PeerSite, error) {
	p, err := a.peer(site)
	if err == nil {
		return p, nil
	}
	err = fmt.Errorf("%w: the certificate is that of the agent of site %s, which is no peer of site %s: add %s to peers: in the configuration of site %s's agent, or take %s out of peers: in that of site %s's",
		ErrForbidden, site, a.Site, site, a.Site, a.Site, site)
	if a.strangers.worthLogging(site) {
		a.Log.Warn("the agent of a site that is no peer was refused", "site", site, "err", err)
	}
	return PeerSite{}, err
}
