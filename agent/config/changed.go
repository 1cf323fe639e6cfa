package config

import "reflect"

// Changed lists the keys whose values differ in two configurations of one kind. A list is one key.
func Changed(a, b any) []string {
	return changed(reflect.ValueOf(a), reflect.ValueOf(b), "")
}

func changed(a, b reflect.Value, at string) (keys []string) {
	for field := range a.Type().Fields() {
		key := at + field.Tag.Get("mapstructure")
		one, other := a.FieldByIndex(field.Index), b.FieldByIndex(field.Index)
		switch {
		case reflect.DeepEqual(one.Interface(), other.Interface()):
		case one.Kind() == reflect.Struct:
			keys = append(keys, changed(one, other, key+".")...)
		default:
			keys = append(keys, key)
		}
	}
	return keys
}
