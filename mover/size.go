package mover

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Size is so many bytes for a person: 1.0 GiB.
func Size(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n)/1024, 0
	for v >= 1023.95 && unit < 4 {
		v, unit = v/1024, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGTP"[unit])
}

var sizeUnits = map[string]int64{
	"": 1, "B": 1,
	"K": 1 << 10, "k": 1 << 10, "KiB": 1 << 10, "kB": 1e3, "KB": 1e3,
	"M": 1 << 20, "m": 1 << 20, "MiB": 1 << 20, "MB": 1e6,
	"G": 1 << 30, "g": 1 << 30, "GiB": 1 << 30, "GB": 1e9,
	"T": 1 << 40, "t": 1 << 40, "TiB": 1 << 40, "TB": 1e12,
	"P": 1 << 50, "p": 1 << 50, "PiB": 1 << 50, "PB": 1e15,
}

// ParseSize reads a whole number of bytes as people write it: 4096, 8K, 8KiB, 256MiB, 1 GiB,
// in powers of 1024, and 8kB, 256MB, 1GB, in powers of 1000.
func ParseSize(s string) (int64, error) {
	number := strings.TrimRightFunc(s, unicode.IsLetter)
	unit, known := sizeUnits[s[len(number):]]
	n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
	if err != nil || !known || n < 0 || n > math.MaxInt64/unit {
		return 0, errors.New("must be a size, such as 1048576, 512MiB or 1GiB")
	}
	return n * unit, nil
}

// Span is d for a person, in the units that matter: 8.2 s, 3 min 12 s, 10 min, 2 h 5 min, 4 d 1 h.
func Span(d time.Duration) string {
	if d < time.Minute {
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	units := []struct {
		name string
		is   time.Duration
	}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"min", time.Minute}, {"s", time.Second}}
	i := 0
	for d < units[i].is {
		i++
	}
	text := fmt.Sprintf("%d %s", d/units[i].is, units[i].name)
	if rest := d % units[i].is / units[i+1].is; rest > 0 {
		text += fmt.Sprintf(" %d %s", rest, units[i+1].name)
	}
	return text
}

// Millis is a round trip time for a person: 50.1 ms, 38 µs.
func Millis(d time.Duration) string {
	if us := d.Round(time.Microsecond).Microseconds(); us < 1000 {
		return fmt.Sprintf("%d µs", us)
	}
	return fmt.Sprintf("%.1f ms", float64(d)/1e6)
}
