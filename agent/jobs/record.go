package jobs

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/glance-dtn/glance-dtn/agent"
)

// recordVersion is the form in which this program writes jobs and the only one
// that it reads.
const recordVersion = 1

// record is a job as it is stored. Fields that are not known are refused: an
// Update would drop them, and with them what a newer agent on the same cluster
// relies on. A change that an older agent must not touch raises recordVersion.
type record struct {
	V     int       `json:"v"`
	Write string    `json:"write"` // tells this write from every other, see Store.write
	Job   agent.Job `json:"job"`
}

// encode returns j as it is stored, and the mark of this write.
func encode(j agent.Job) (value, mark string, err error) {
	mark = rand.Text()
	b, err := json.Marshal(record{V: recordVersion, Write: mark, Job: j})
	return string(b), mark, err
}

// decode returns the job that value holds, with the revision at which it was
// stored, and the mark of that write. It fails unless the job's id is id; every error is
// agent.ErrRecord.
func decode(id agent.JobID, value []byte, rev int64) (j agent.Job, mark string, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w: job %q: %w", agent.ErrRecord, id, err)
		}
	}()
	var form struct {
		V int `json:"v"`
	}
	if err := json.Unmarshal(value, &form); err != nil {
		return agent.Job{}, "", err
	}
	if form.V != recordVersion {
		return agent.Job{}, "", fmt.Errorf("it has version %d, this agent reads version %d: run the release that wrote it", form.V, recordVersion)
	}
	var r record
	d := json.NewDecoder(bytes.NewReader(value))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return agent.Job{}, "", err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return agent.Job{}, "", errors.New("something follows the job")
	}
	if r.Job.ID != id {
		return agent.Job{}, "", fmt.Errorf("it holds job %q", r.Job.ID)
	}
	j = inUTC(r.Job)
	j.Rev = rev
	return j, r.Write, nil
}

// inUTC returns j with every time in UTC and without a monotonic reading: as it
// comes back from the store.
func inUTC(j agent.Job) agent.Job {
	j.History = slices.Clone(j.History)
	times := []*time.Time{&j.NotBefore, &j.Created, &j.Updated, &j.Image.CreatedAt, &j.Image.UpdatedAt}
	for i := range j.History {
		times = append(times, &j.History[i].At)
	}
	for _, t := range times {
		*t = t.Round(0).UTC()
	}
	return j
}
