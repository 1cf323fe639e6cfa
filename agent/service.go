package agent

import (
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/mover"
)

// Match selects images. An empty field selects all; a set one must hold; of
// several values in one field one must hold.
type Match struct {
	Names      []string          `json:"names,omitempty" doc:"regular expressions, each for the whole name"`
	IDs        []glance.ImageID  `json:"ids,omitempty"`
	Tags       []string          `json:"tags,omitempty"`
	Visibility []string          `json:"visibility,omitempty"`
	Owners     []string          `json:"owners,omitempty" doc:"project ids at the source"`
	Properties map[string]string `json:"properties,omitempty" doc:"all of these"`
	MaxSize    int64             `json:"max_size,omitempty" doc:"bytes; 0: no limit"`
}

// CompileName compiles an expression of Match.Names, for the whole name.
func CompileName(expr string) (*regexp.Regexp, error) {
	if _, err := regexp.Compile(expr); err != nil { // such as a)|(b, which the brackets would mend
		return nil, err
	}
	return regexp.Compile(`^(?:` + expr + `)$`)
}

// Validate reports an expression that does not compile.
func (m Match) Validate() error {
	for _, n := range m.Names {
		if _, err := CompileName(n); err != nil {
			return fmt.Errorf("name %q: %w", n, err)
		}
	}
	return nil
}

// Selects reports whether m selects the image. m must be valid.
func (m Match) Selects(i glance.Image) bool {
	if len(m.Names) > 0 && !slices.ContainsFunc(m.Names, func(n string) bool {
		re, err := CompileName(n)
		return err == nil && re.MatchString(i.Name)
	}) {
		return false
	}
	if len(m.IDs) > 0 && !slices.Contains(m.IDs, i.ID) ||
		len(m.Visibility) > 0 && !slices.Contains(m.Visibility, i.Visibility) ||
		len(m.Owners) > 0 && !slices.Contains(m.Owners, i.Owner) ||
		m.MaxSize > 0 && i.Size > m.MaxSize {
		return false
	}
	if len(m.Tags) > 0 && !slices.ContainsFunc(m.Tags, func(t string) bool { return slices.Contains(i.Tags, t) }) {
		return false
	}
	for k, v := range m.Properties {
		if i.Properties[k] != v {
			return false
		}
	}
	return true
}

// Rule sends the images it selects to sites. An image that several rules select
// goes to each site once.
type Rule struct {
	Name  string   `json:"name"`
	Match Match    `json:"match"`
	To    []string `json:"to"`

	Priority mover.Priority `json:"priority,omitempty"`
}

// Relation is how an image stands at another site.
type Relation string

// The relations, from the view of the site that asks.
const (
	Same     Relation = "same"     // active there with the same content and metadata
	Differs  Relation = "differs"  // same content, other metadata
	Conflict Relation = "conflict" // the id is there with other content
	Missing  Relation = "missing"  // not there
	Extra    Relation = "extra"    // there, not here
	Unready  Relation = "unready"  // here or there, but not active
	Unknown  Relation = "unknown"  // the site does not tell
)

// Comparison is one image here and at a peer; or of no image, Unknown, a peer that does not
// tell what it has.
type Comparison struct {
	ID       glance.ImageID `json:"id,omitempty"`
	Name     string         `json:"name,omitempty"`
	Size     int64          `json:"size"`
	Peer     string         `json:"peer"`
	Relation Relation       `json:"relation"`
	Detail   string         `json:"detail,omitempty" doc:"the fields that differ, the other content, the status, what a cancelled delivery has left, or why the site does not tell"`
	Planned  bool           `json:"planned" doc:"replicate would send, or has sent, this image"`
	Job      JobID          `json:"job,omitempty" doc:"that brings it there now"`

	half  bool  // Unready there, where a delivery has begun it: whether one goes on with it only jobs tell
	maker JobID // that delivery, as long as no byte is in its record
}

// Standing is how an image stands at one site in an Overview.
type Standing struct {
	Relation Relation `json:"relation,omitempty"`
	State    State    `json:"state,omitempty" doc:"of the job that brings it there, if any"`
	Percent  int      `json:"percent,omitempty" doc:"of the running leg"`
	Reason   string   `json:"reason,omitempty"`
	Paused   bool     `json:"paused,omitempty" doc:"the job waits for the export of this site's DTN, which the reason tells of"`
	Job      JobID    `json:"job,omitempty"`
	Route    string   `json:"route,omitempty" doc:"by which way the file goes, and why, where that was chosen"`
	Legs     []Change `json:"legs,omitempty" doc:"how the legs of that job went: the way of the local copy, the rate of the transfer"`
}

// Overview is images × sites.
type Overview struct {
	Site   string        `json:"site"`
	Peers  []PeerState   `json:"peers"`
	Images []ImageState  `json:"images"`
	Store  []StoreFault  `json:"store_faults"`
	Checks []Check       `json:"checks"`
	Jobs   map[State]int `json:"jobs" doc:"how many jobs are in each state"`
	Parked []Incoming    `json:"parked_incoming" doc:"images that other sites send here, and that need a person"`
	At     time.Time     `json:"at"`
}

// Incoming is an image that another site sends here.
type Incoming struct {
	Job    JobID          `json:"job"`
	Peer   string         `json:"peer" doc:"the site that sends it"`
	Image  glance.ImageID `json:"image"`
	Name   string         `json:"name,omitempty"`
	Reason string         `json:"reason,omitempty"`
}

// PeerState tells whether a peer answers, and what it says of itself.
type PeerState struct {
	Name  string `json:"name"`
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
	Health
}

// Health is what an agent tells its peers of what their images wait for at its site.
type Health struct {
	DTN *Silence `json:"dtn,omitempty" doc:"its DTN does not answer it; left out: it does, or the agent is of a version that does not tell"`
}

// Silence is since when something has not answered, and why.
type Silence struct {
	Since time.Time `json:"since"`
	Error string    `json:"error"`
}

// ImageState is one image of this site in an Overview.
type ImageState struct {
	ID     glance.ImageID      `json:"id"`
	Name   string              `json:"name,omitempty"`
	Status glance.Status       `json:"status"`
	Size   int64               `json:"size"`
	Sites  map[string]Standing `json:"sites" doc:"by peer"`
	Note   string              `json:"note,omitempty" doc:"e.g. saving for 3 h"`
}

// StoreFault is a disagreement of the datadir with Glance.
type StoreFault struct {
	ID    glance.ImageID `json:"id"`
	Path  string         `json:"path,omitempty"`
	Fault string         `json:"fault" enum:"file without image,image without file,wrong size,stuck"`
	Note  string         `json:"note" doc:"what to do"`
}

// Check is one line of /readyz.
type Check struct {
	Name  string `json:"name"`
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
	Note  string `json:"note,omitempty" doc:"what is good to know, though nothing is wrong"`
}

// Errors that a caller of the agent can act on.
var (
	ErrNoPeer    = fmt.Errorf("no such peer site; see peers: in the agent's configuration")
	ErrAmbiguous = fmt.Errorf("more than one image has this name; use the id")
	ErrForbidden = fmt.Errorf("not allowed")
	ErrBadState  = fmt.Errorf("the job's state does not allow that")
)
