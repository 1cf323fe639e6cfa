package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/glance-dtn/glance-dtn/tuning/routing"
)

// mostSegments is how long a file of segments may be.
const mostSegments = 1 << 20

// readSegments reads a file of segments, and says in plain words all that is wrong with it.
func readSegments(file string) ([]routing.Segment, error) {
	in := io.Reader(os.Stdin)
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, mostSegments+1))
	if err == nil && len(data) > mostSegments {
		err = fmt.Errorf("it has more than %s", size(mostSegments))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	all, err := parseSegments(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return all, nil
}

func parseSegments(data []byte) ([]routing.Segment, error) {
	var items []json.RawMessage
	err := json.Unmarshal(data, &items)
	if e, ok := errors.AsType[*json.SyntaxError](err); ok {
		before := data[:min(max(e.Offset-1, 0), int64(len(data)))]
		line := 1 + bytes.Count(before, []byte("\n"))
		return nil, fmt.Errorf("line %d: this is no JSON: %w", line, e)
	}
	if err != nil || items == nil {
		return nil, errors.New(`want a list of segments: [{"from": "A", "to": "B", ...}, ...]`)
	}
	all := make([]routing.Segment, len(items))
	var faults []error
	for i, item := range items {
		for _, what := range parseSegment(item, &all[i]) {
			faults = append(faults, fmt.Errorf("segment %d: %s", i+1, what))
		}
	}
	return all, errors.Join(faults...)
}

// segmentKeys are those of a segment.
var segmentKeys = keysOf(reflect.TypeFor[routing.Segment]())

func keysOf(t reflect.Type) (keys []string) {
	for f := range t.Fields() {
		if f.Anonymous {
			keys = append(keys, keysOf(f.Type)...)
			continue
		}
		key, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		keys = append(keys, key)
	}
	return keys
}

// parseSegment returns all that is wrong with a segment.
func parseSegment(item json.RawMessage, s *routing.Segment) (faults []string) {
	var given map[string]json.RawMessage
	if json.Unmarshal(item, &given) != nil || given == nil {
		return []string{fmt.Sprintf(`want {"from": "A", "to": "B", ...} and not %s`, item)}
	}
	for key, value := range given {
		if !slices.Contains(segmentKeys, key) {
			faults = append(faults, fmt.Sprintf("%q is not a key; the keys are %s", key, strings.Join(segmentKeys, ", ")))
			continue
		}
		one, err := json.Marshal(map[string]json.RawMessage{key: value})
		if err == nil {
			err = json.Unmarshal(one, s)
		}
		if err != nil {
			faults = append(faults, fmt.Sprintf("%s must be %s, and not %s", key, kindOf(err), value))
		}
	}
	slices.Sort(faults)
	return faults
}

// kindOf says what a value should have been.
func kindOf(err error) string {
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		switch e.Type.Kind() {
		case reflect.String:
			return `text in quotes, such as "A"`
		case reflect.Int, reflect.Int64:
			return "a whole number, such as 5000000"
		}
	}
	return "a number, such as 0.001 or 1e9"
}
