package config

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/viper"

	"github.com/glance-dtn/glance-dtn/mover"
)

// between stands between the levels of a key inside viper, so that a key may hold a dot.
const between = "::"

// load fills into, a pointer to a struct that holds the defaults, from the file
// and the environment, and lets finish look at the result. finish gets the
// directory that paths are relative to, and adds the faults it finds to those that
// were found before.
func load(path string, env func(string) string, into any, finish func(dir string, f *faults)) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("read configuration %s: %w", path, err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	raw, err := parse(data)
	if err != nil {
		return fmt.Errorf("read configuration %s: %w", path, err)
	}
	f := new(faults)
	known(raw, reflect.TypeOf(into).Elem(), "", f)
	v := viper.NewWithOptions(viper.KeyDelimiter(between))
	if err := v.MergeConfigMap(raw); err != nil {
		return fmt.Errorf("read configuration %s: %w", path, err)
	}
	overlay(v, env, reflect.TypeOf(into).Elem(), nil, f)
	f.decoding(v.UnmarshalExact(into, viper.DecodeHook(strict)))
	finish(filepath.Dir(path), f)
	if err := f.err(); err != nil {
		return fmt.Errorf("configuration %s:\n%w", path, err)
	}
	return nil
}

// quoted is how the YAML parser repeats a value.
var quoted = regexp.MustCompile("`[^`]*`")

// parse returns the file's keys as they were typed. Viper's own reader would
// lower-case them all.
func parse(data []byte) (map[string]any, error) {
	yaml, err := viper.NewCodecRegistry().Decoder("yaml")
	if err != nil {
		return nil, err
	}
	raw := map[string]any{}
	if err := yaml.Decode(data, raw); err != nil {
		return nil, errors.New(quoted.ReplaceAllString(err.Error(), "a value"))
	}
	return raw, nil
}

// known takes every key out of raw that t, a struct type, has no field for, and
// reports it. It turns maps with free keys into map[string]string, which viper
// leaves as it is, while in a map[string]any it would lower-case the keys.
func known(raw map[string]any, t reflect.Type, at string, f *faults) {
	fields := fieldsOf(t)
	for _, key := range slices.Sorted(maps.Keys(raw)) {
		full := at + key
		field, ok := fields[key]
		if !ok {
			near := nearest(key, fields)
			if near == "" {
				f.add(full, "is not a key; here are %s", strings.Join(slices.Sorted(maps.Keys(fields)), ", "))
			} else {
				f.add(full, "is not a key; did you mean %s?", near)
				if _, given := raw[near]; !given {
					f.mark(at + near)
				}
			}
			delete(raw, key)
			continue
		}
		switch v := raw[key].(type) {
		case map[string]any:
			switch field.Kind() {
			case reflect.Struct:
				known(v, field, full+".", f)
			case reflect.Map:
				raw[key] = texts(v, full, f)
			}
		case map[any]any:
			f.add(full, "has a key that is not text: put it in quotes")
			delete(raw, key)
		case []any:
			for i, item := range v {
				if m, ok := item.(map[string]any); ok && field.Kind() == reflect.Slice && field.Elem().Kind() == reflect.Struct {
					known(m, field.Elem(), fmt.Sprintf("%s[%d].", full, i), f)
				}
			}
		}
	}
}

// texts returns m with its values, which must be text.
func texts(m map[string]any, at string, f *faults) map[string]string {
	t := make(map[string]string, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		s, ok := m[k].(string)
		if !ok {
			f.add(at+"."+k, "must be text: put it in quotes")
		}
		t[k] = s
	}
	return t
}

// fieldsOf returns the keys of a struct type and the types of their values.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	m := make(map[string]reflect.Type, t.NumField())
	for field := range t.Fields() {
		m[field.Tag.Get("mapstructure")] = field.Type
	}
	return m
}

// nearest returns the key that was probably meant, or "".
func nearest(key string, fields map[string]reflect.Type) string {
	best, near := 3, ""
	for _, k := range slices.Sorted(maps.Keys(fields)) {
		if d := distance(strings.ToLower(key), k); d < best && d < len(k) {
			best, near = d, k
		}
	}
	return near
}

// distance is how many characters have to be inserted, removed or replaced to
// make b of a (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// overlay sets the single values of t that the environment has.
func overlay(v *viper.Viper, env func(string) string, t reflect.Type, at []string, f *faults) {
	for field := range t.Fields() {
		key := append(slices.Clone(at), field.Tag.Get("mapstructure"))
		if field.Type.Kind() == reflect.Struct {
			overlay(v, env, field.Type, key, f)
			continue
		}
		name := "GLANCE_DTN_" + strings.ToUpper(strings.Join(key, "__"))
		text := env(name)
		if text == "" {
			continue
		}
		value, err := fromText(text, field.Type)
		if err != nil {
			f.add(strings.Join(key, "."), "set by %s: %v", name, err)
			continue
		}
		v.Set(strings.Join(key, between), value)
	}
}

// fromText returns what an environment variable's text means for a field. Text
// that strict can decode stays text.
func fromText(s string, t reflect.Type) (any, error) {
	switch {
	case t == reflect.TypeFor[time.Duration](), t == reflect.TypeFor[Size](), t.Kind() == reflect.String:
		return s, nil
	case t.Kind() == reflect.Int:
		n, err := strconv.Atoi(s)
		if err != nil {
			return nil, errors.New("must be a whole number")
		}
		return n, nil
	case t.Kind() == reflect.Bool:
		b, err := strconv.ParseBool(s)
		if err != nil {
			return nil, errors.New("must be true or false")
		}
		return b, nil
	default:
		return nil, errors.New("can only be set in the file")
	}
}

// strict is the decode hook. It reads durations, sizes and rates, gives a peer, its relay,
// a rule and a limit their defaults, and refuses everything else that is not of the field's kind, where
// viper would make do: text as a number, a number as text, 2.5 as 2, one value as a list.
func strict(from, to reflect.Value) (any, error) {
	switch to.Type() {
	case reflect.TypeFor[time.Duration]():
		return duration(from)
	case reflect.TypeFor[Size]():
		return size(from)
	case reflect.TypeFor[mover.Rate]():
		return rate(from)
	case reflect.TypeFor[Limit]():
		if m, ok := from.Interface().(map[string]any); ok {
			return over(m, "send", mover.Unlimited.String(), "receive", mover.Unlimited.String()), nil
		}
	case reflect.TypeFor[Rule]():
		if m, ok := from.Interface().(map[string]any); ok {
			return over(m, "priority", string(mover.PriorityNormal)), nil
		}
	case reflect.TypeFor[Peer]():
		if m, ok := from.Interface().(map[string]any); ok {
			return over(m, "jobs", defaultJobs), nil
		}
	case reflect.TypeFor[Via]():
		if m, ok := from.Interface().(map[string]any); ok {
			return over(m, "mode", string(mover.CutThrough)), nil
		}
	}
	want := map[reflect.Kind]string{
		reflect.String: "text: put it in quotes",
		reflect.Int:    "a whole number",
		reflect.Bool:   "true or false",
		reflect.Slice:  "a list: write [a, b]",
		reflect.Struct: "a block of keys",
		reflect.Map:    "a block of keys",
	}
	if from.Kind() == reflect.String && to.Type() == reflect.TypeFor[Via]() {
		return nil, errors.New("must be a block of keys, such as {mode: auto, among: [{site: R, address: dtn-r.example.org:7444}]}")
	}
	got := from.Kind()
	if got == to.Kind() || got == reflect.Map && to.Kind() == reflect.Struct {
		return from.Interface(), nil
	}
	return nil, fmt.Errorf("must be %s", want[to.Kind()])
}

// over returns m over defaults, each a key and its value.
func over(m map[string]any, defaults ...any) map[string]any {
	m = maps.Clone(m)
	for i := 0; i < len(defaults); i += 2 {
		if key := defaults[i].(string); m[key] == nil {
			m[key] = defaults[i+1]
		}
	}
	return m
}

func duration(from reflect.Value) (any, error) {
	if from.Kind() == reflect.String {
		if d, err := time.ParseDuration(from.String()); err == nil {
			return d, nil
		}
	}
	return nil, errors.New("must be a duration with its unit, such as 300ms, 15s, 10m or 720h")
}

var units = []struct {
	name  string
	bytes int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3},
}

func size(from reflect.Value) (any, error) {
	if from.CanInt() {
		return Size(from.Int()), nil
	}
	n, err := mover.ParseSize(fmt.Sprint(from.Interface()))
	return Size(n), err
}

func rate(from reflect.Value) (any, error) {
	return mover.ParseRate(fmt.Sprint(from.Interface()))
}

// resolve makes the paths absolute. An empty path stays empty.
func resolve(dir string, paths ...*string) {
	for _, p := range paths {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
}
