package history

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/tuning"
)

// columns are those of the CSV, a line for each step. What of an outcome is the same for
// all its steps is on each of their lines.
var columns = []string{
	"id", "ended", "engine", "bandwidth_bps", "rtt_ns", "buffer_bytes", "loss", "congestion", "files", "size_bytes",
	"pipelining", "concurrency", "parallelism", "lasted_ns", "bytes", "retransmitted_bytes", "bottleneck",
}

// WriteCSV writes outcomes as CSV (RFC 4180), with a header.
func WriteCSV(w io.Writer, outcomes []tuning.Outcome) error {
	out := csv.NewWriter(w)
	if err := out.Write(columns); err != nil {
		return err
	}
	float := func(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }
	integer := func(v int64) string { return strconv.FormatInt(v, 10) }
	for _, o := range outcomes {
		for _, s := range o.Steps {
			if err := out.Write([]string{
				o.ID, o.Ended.UTC().Format(time.RFC3339Nano), o.Engine, float(o.Bandwidth), integer(int64(o.RTT)), integer(o.Buffer), float(o.Loss), o.Congestion, strconv.Itoa(o.Files), integer(o.Size),
				strconv.Itoa(s.PCP.Pipelining), strconv.Itoa(s.PCP.Concurrency), strconv.Itoa(s.PCP.Parallelism), integer(int64(s.Lasted)), integer(s.Bytes), integer(s.Retransmits), string(s.Bottleneck),
			}); err != nil {
				return err
			}
		}
	}
	out.Flush()
	return out.Error()
}

// ReadCSV reads what WriteCSV writes. Lines of one transfer follow each other; those before
// the header that begin with # are comments. It reads all or nothing: an error names the first line that is wrong.
func ReadCSV(r io.Reader) (outcomes []tuning.Outcome, err error) {
	in := csv.NewReader(r)
	in.Comment = '#'
	header, err := in.Read()
	in.Comment = 0
	if err == io.EOF {
		return nil, errors.New("read outcomes: there is no header")
	} else if err != nil {
		return nil, fmt.Errorf("read outcomes: %w", err)
	}
	if !slices.Equal(header, columns) {
		return nil, fmt.Errorf("read outcomes: the header is not %q", strings.Join(columns, ","))
	}
	ids := map[string]bool{}
	end := func() error { // of an outcome
		if len(outcomes) == 0 {
			return nil
		}
		return outcomes[len(outcomes)-1].Validate()
	}
	for {
		line, _ := in.FieldPos(0)
		fields, err := in.Read()
		if err == io.EOF {
			break
		} else if err != nil {
			return nil, fmt.Errorf("read outcomes: %w", err)
		}
		o, s, err := parseLine(fields)
		at, _ := in.FieldPos(0)
		if err != nil {
			return nil, fmt.Errorf("read outcomes: line %d: %w", at, err)
		}
		if n := len(outcomes); n > 0 && outcomes[n-1].ID == o.ID {
			last := &outcomes[n-1]
			if !last.Ended.Equal(o.Ended) || last.Engine != o.Engine || last.Condition != o.Condition {
				return nil, fmt.Errorf("read outcomes: line %d: it does not agree with the line before, which is of the same transfer", at)
			}
			last.Steps = append(last.Steps, s)
			continue
		}
		if err := end(); err != nil {
			return nil, fmt.Errorf("read outcomes: line %d: %w", line, err)
		}
		if ids[o.ID] {
			return nil, fmt.Errorf("read outcomes: line %d: transfer %q was above already", at, o.ID)
		}
		ids[o.ID] = true
		o.Steps = []tuning.Step{s}
		outcomes = append(outcomes, o)
	}
	if err := end(); err != nil {
		return nil, fmt.Errorf("read outcomes: the last transfer: %w", err)
	}
	return outcomes, nil
}

func parseLine(fields []string) (o tuning.Outcome, s tuning.Step, err error) {
	var faults []error
	at := -1
	next := func() string {
		at++
		return fields[at]
	}
	fault := func(err error) {
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", columns[at], err))
		}
	}
	float := func() float64 {
		v, err := strconv.ParseFloat(next(), 64)
		fault(err)
		return v
	}
	integer := func() int64 {
		v, err := strconv.ParseInt(next(), 10, 64)
		fault(err)
		return v
	}
	o.ID = next()
	o.Ended, err = time.Parse(time.RFC3339Nano, next())
	fault(err)
	o.Ended = o.Ended.UTC()
	o.Engine = next()
	o.Bandwidth, o.RTT, o.Buffer, o.Loss, o.Congestion = float(), time.Duration(integer()), integer(), float(), next()
	o.Files, o.Size = int(integer()), integer()
	s.PCP = mover.PCP{Pipelining: int(integer()), Concurrency: int(integer()), Parallelism: int(integer())}
	s.Lasted, s.Bytes, s.Retransmits, s.Bottleneck = time.Duration(integer()), integer(), integer(), mover.Place(next())
	return o, s, errors.Join(faults...)
}
