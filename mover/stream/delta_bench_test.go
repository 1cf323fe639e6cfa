package stream

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/mover"
)

// buildImage makes a Debian image of 2 GiB: its first argument is the directory, the second
// its name, the third "security" for one with the updates of the day, the others packages.
const buildImage = `set -e
cd "$1"; name=$2; updates=$3; shift 3
mirror=http://deb.debian.org/debian
debootstrap --variant=minbase --include="$(echo "$*" | tr ' ' ,)" bookworm "$name" "$mirror"
if [ "$updates" = security ]; then
	echo "deb $mirror-security bookworm-security main" >"$name/etc/apt/sources.list.d/security.list"
	chroot "$name" apt-get -q update
	DEBIAN_FRONTEND=noninteractive chroot "$name" apt-get -q -y dist-upgrade
fi
chroot "$name" apt-get clean
rm -rf "$name"/var/lib/apt/lists/* "$name"/var/cache/apt/*.bin
tr -d - </proc/sys/kernel/random/uuid >"$name/etc/machine-id"
truncate -s 2G "outbox/$name"
mkfs.ext4 -q -d "$name" "outbox/$name"
rm -rf "$name"
`

// BenchmarkNextBuild moves an image to a receiver that was sent an earlier build: without
// the updates of Debian's security archive and one package less. It needs root and
// Debian's mirror. wire/zstd is what was sent, to what zstd -3 makes of the whole image.
func BenchmarkNextBuild(b *testing.B) {
	if _, err := exec.LookPath("debootstrap"); err != nil || os.Geteuid() != 0 {
		b.Skip("no debootstrap, or not root")
	}
	r := newDeltaRig(b, mover.Private, 8<<30)
	r.rig.Engine.(*Engine).compressAll = true // as on a path that is far
	build := func(name string, args ...string) mover.File {
		out, err := exec.CommandContext(b.Context(), "sh", append([]string{"-c", buildImage, "sh", r.rig.Source, name}, args...)...).CombinedOutput()
		if err != nil {
			b.Skipf("no image was built: %v\n%s", err, out[max(0, len(out)-1000):])
		}
		return r.summed(b, name)
	}
	last := build("last", "", "systemd-sysv", "openssh-server", "ca-certificates", "curl", "iproute2")
	next := build("next", "security", "systemd-sysv", "openssh-server", "ca-certificates", "curl", "iproute2", "less")
	whole := compressed(b, filepath.Join(r.rig.Source, next.Name))
	r.move(b, last)
	if err := r.recv().Drop("inbox/last"); err != nil {
		b.Fatal(err)
	}
	r.indexed(b)
	for b.Loop() {
		sent := r.move(b, next)
		b.ReportMetric(float64(sent), "wire-bytes")
		b.ReportMetric(float64(sent)/float64(whole), "wire/zstd")
		b.StopTimer()
		if err := r.recv().discard(r.recv().lookup("inbox/next")); err != nil { // it is to be no base
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// summed is a file of the source's outbox, with its digest.
func (r *rig) summed(b *testing.B, base string) mover.File {
	f, err := os.Open(filepath.Join(r.rig.Source, mover.Outbox, base))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	h, _ := digest.New("sha512")
	n, err := io.Copy(h, f)
	if err != nil {
		b.Fatal(err)
	}
	return mover.File{Name: mover.Outbox + "/" + base, Size: n, Digest: digest.Of("sha512", h)}
}

// compressed is how many bytes zstd -3 makes of a file.
func compressed(b *testing.B, name string) int64 {
	f, err := os.Open(name)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	var n written
	z, err := zstd.NewWriter(&n, zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(3)))
	if err != nil {
		b.Fatal(err)
	}
	_, err = io.Copy(z, f)
	if cerr := z.Close(); err != nil || cerr != nil {
		b.Fatal(err, cerr)
	}
	return int64(n)
}

type written int64

func (n *written) Write(b []byte) (int, error) {
	*n += written(len(b))
	return len(b), nil
}
