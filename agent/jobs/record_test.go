package jobs

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/glance-dtn/glance-dtn/agent"
)

func TestRecordsThatThisAgentWouldSpoilAreRefused(t *testing.T) {
	t.Parallel()
	good, mark, err := encode(sample(1))
	if err != nil {
		t.Fatal(err)
	}
	id := sample(1).ID
	if j, m, err := decode(id, []byte(good), 7); err != nil || m != mark || j.Rev != 7 {
		t.Fatalf("good record: got mark %q, Rev %d, error %v", m, j.Rev, err)
	}
	for name, bad := range map[string]string{
		"version 2, run the release": strings.Replace(good, `"v":1`, `"v":2,"more":{}`, 1),
		"version 0":                  strings.Replace(good, `"v":1`, `"v":0`, 1),
		"unknown field":              strings.Replace(good, `"peer":`, `"colour":1,"peer":`, 1),
		"holds job":                  strings.Replace(good, string(id), "another", 1),
		"unexpected end":             good[:len(good)-1],
		"after top-level value":      good + "{}",
	} {
		want, _, _ := strings.Cut(name, ",")
		if _, _, err := decode(id, []byte(bad), 7); !errors.Is(err, agent.ErrRecord) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), string(id)) {
			t.Errorf("%s: got error %v", name, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	good, _, err := encode(sample(1))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(good))
	f.Add([]byte(strings.Replace(good, ":00.000000123Z", ":00+02:00", 1)))
	f.Add([]byte(`{"v":1}`))
	f.Add([]byte(`{"v":1,"write":"x","job":{"history":[{}]}}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		for _, id := range []agent.JobID{"", sample(1).ID} {
			j, _, err := decode(id, value, 1)
			if err != nil {
				continue
			}
			again, _, err := encode(j)
			if err != nil {
				t.Fatalf("what was read cannot be written: %v", err)
			}
			if k, _, err := decode(id, []byte(again), 1); err != nil || !reflect.DeepEqual(j, k) {
				t.Fatalf("read %+v, wrote and read %+v, error %v", j, k, err)
			}
		}
	})
}
