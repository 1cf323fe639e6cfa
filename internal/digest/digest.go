// Package digest names the content of a file the way Glance does: by a hash
// algorithm and its value in lower-case hex (os_hash_algo, os_hash_value).
package digest

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"strings"
)

// Digest is a content hash. The zero value means "not known".
type Digest struct {
	Algo  string `json:"algo" doc:"hash algorithm in Glance's spelling, e.g. sha512"`
	Value string `json:"value" doc:"lower-case hex"`
}

var algorithms = map[string]func() hash.Hash{
	"md5":    md5.New,
	"sha1":   sha1.New,
	"sha224": sha256.New224,
	"sha256": sha256.New,
	"sha384": sha512.New384,
	"sha512": sha512.New,
}

// New returns a hash for Glance's algorithm name. An algorithm that Glance
// (through Python's hashlib) knows and this program does not is an error.
func New(algo string) (hash.Hash, error) {
	if f, ok := algorithms[algo]; ok {
		return f(), nil
	}
	return nil, fmt.Errorf("hash algorithm %q is not supported; set [DEFAULT]hashing_algorithm = sha512 in glance-api.conf", algo)
}

// Of returns the digest that h has reached.
func Of(algo string, h hash.Hash) Digest {
	return Digest{Algo: algo, Value: hex.EncodeToString(h.Sum(nil))}
}

// IsZero reports whether nothing is known about the content.
func (d Digest) IsZero() bool { return d == Digest{} }

// Validate reports whether d names a supported algorithm and a value of that
// algorithm's length.
func (d Digest) Validate() error {
	h, err := New(d.Algo)
	if err != nil {
		return err
	}
	b, err := hex.DecodeString(d.Value)
	if err != nil || len(b) != h.Size() || strings.ToLower(d.Value) != d.Value {
		return fmt.Errorf("%s value %q is not %d lower-case hex digits", d.Algo, d.Value, 2*h.Size())
	}
	return nil
}

// String returns algo:value.
func (d Digest) String() string {
	if d.IsZero() {
		return "unknown"
	}
	return d.Algo + ":" + d.Value
}

// Short returns enough of the value to tell images apart in a table.
func (d Digest) Short() string {
	if len(d.Value) > 12 {
		return d.Value[:12]
	}
	return d.Value
}

// MismatchError says that content is not what it was promised to be.
type MismatchError struct{ Want, Got Digest }

func (e *MismatchError) Error() string {
	return fmt.Sprintf("wrong content: want %v, got %v", e.Want, e.Got)
}

// Check returns a *MismatchError unless got equals want.
func Check(want, got Digest) error {
	if want != got {
		return &MismatchError{Want: want, Got: got}
	}
	return nil
}
