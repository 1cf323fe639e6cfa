package mover

// Types of Problem. They are API: a client may branch on them.
const (
	ProblemInvalid   = "urn:glance-dtn:problem:invalid"      // 400, 415, 422: the request itself is wrong, a repetition is refused as well
	ProblemForbidden = "urn:glance-dtn:problem:forbidden"    // 403: the certificate's site or role may not do this
	ProblemNotFound  = "urn:glance-dtn:problem:not-found"    // 404: no such transfer, no such arrival
	ProblemConflict  = "urn:glance-dtn:problem:key-conflict" // 409: the key was used for another transfer
	ProblemTooLarge  = "urn:glance-dtn:problem:too-large"    // 413
	ProblemBusy      = "urn:glance-dtn:problem:busy"         // 503: later
	ProblemInternal  = "urn:glance-dtn:problem:internal"     // all else
)

// ProblemMedia is the media type of a Problem.
const ProblemMedia = "application/problem+json"

// Problem is what the third-party API answers when it did not do what it was
// asked (RFC 9457).
type Problem struct {
	Type   string   `json:"type" doc:"stable, for a program"`
	Title  string   `json:"title,omitempty"`
	Status int      `json:"status" doc:"HTTP status code"`
	Detail string   `json:"detail,omitempty" doc:"what happened, for a person"`
	Code   Code     `json:"code,omitempty" doc:"as in a transfer's status, where one applies"`
	Errors []string `json:"errors,omitempty" doc:"every fault of the request, with its place"`
}

// Error returns the detail and the single faults.
func (p *Problem) Error() string {
	text := p.Detail
	if text == "" {
		text = p.Title
	}
	for i, e := range p.Errors {
		if i == 0 {
			text += ": " + e
		} else {
			text += "; " + e
		}
	}
	return text
}

// GetStatus returns the HTTP status code.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType returns ProblemMedia whatever the client asked for.
func (p *Problem) ContentType(string) string { return ProblemMedia }
