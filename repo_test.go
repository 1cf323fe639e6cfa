package glancedtn_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"
)

const module = "github.com/glance-dtn/glance-dtn"

// keepers names, for each third-party import, the folders that may have it. A
// module is wrapped where it is kept, so that it can be replaced in one place.
var keepers = map[string][]string{
	"github.com/cenkalti/backoff/v5":      {"agent/jobs"},
	"github.com/coreos/go-systemd/v22":    {"cmd"},
	"github.com/danielgtaylor/huma/v2":    {"agent/api", "mover/dtn"},
	"github.com/fsnotify/fsnotify":        {"glance/store"},
	"github.com/go-git/go-billy/v5":       {"nfs/nfstest"},
	"github.com/golang-jwt/jwt/v5":        {"mover/ticket"},
	"github.com/gophercloud/gophercloud":  {"glance/catalog"},
	"github.com/jedib0t/go-pretty/v6":     {"cmd"},
	"github.com/jotfs/fastcdc-go":         {"internal/delta"},
	"github.com/klauspost/compress":       {"mover/stream"},
	"github.com/prometheus/client_golang": {"agent/api", "cmd", "mover/dtn"},
	"github.com/rasky/go-xdr":             {"nfs/probe"},
	"github.com/safchain/ethtool":         {"tuning/hosttcp"},
	"github.com/spf13/cobra":              {"cmd"},
	"github.com/spf13/viper":              {"agent/config"},
	"github.com/vbauerster/mpb/v8":        {"cmd"},
	"github.com/vishvananda/netlink":      {"tuning/hosttcp"},
	"github.com/vmware/go-nfs-client":     {"nfs/probe"},
	"github.com/willscott/go-nfs":         {"nfs/nfstest"},
	"github.com/zeebo/xxh3":               {"internal/digest"},
	"go.etcd.io":                          {"agent/jobs"},
	"go.uber.org/zap":                     {"agent/jobs"},
	"go.yaml.in/yaml/v3":                  {"cmd"},
	"golang.org/x/sync":                   {"cmd", "deploy", "mover"},
	"golang.org/x/sys":                    {"cmd", "deploy", "internal", "mover", "nfs", "tuning/hosttcp"},
	"golang.org/x/term":                   {"cmd"},
	"golang.org/x/time":                   {"mover/stream/pace"},
	"gonum.org/v1/gonum":                  {"tuning/pcp"},
	"google.golang.org/grpc":              {"agent/jobs"},
}

// testModules are for tests alone, in any folder.
var testModules = []string{"github.com/prometheus/procfs", "github.com/rogpeppe/go-internal", "go.uber.org/goleak", "pgregory.net/rapid"}

// nouns are the folders of types without I/O, with the nouns that each may use.
var nouns = map[string][]string{
	"agent":  {"glance", "mover"},
	"glance": {},
	"mover":  {},
	"nfs":    {},
	"tuning": {"mover", "nfs"},
}

// listed is what "go list" tells of one package. Folder is relative to the root.
type listed struct {
	ImportPath, Name, Dir, Doc         string
	GoFiles, TestGoFiles, XTestGoFiles []string
	Imports, TestImports, XTestImports []string
	Folder                             string `json:"-"`
}

func (p listed) testOnly() bool { return strings.HasSuffix(p.Name, "test") }

var packages = sync.OnceValues(func() ([]listed, error) {
	out, err := exec.Command("go", "list", "-json", "./...").Output()
	if ee, ok := errors.AsType[*exec.ExitError](err); ok {
		return nil, errors.New(string(ee.Stderr))
	} else if err != nil {
		return nil, err
	}
	var all []listed
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := d.Decode(&p); err == io.EOF {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		p.Folder = strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		all = append(all, p)
	}
})

func eachPackage(t *testing.T, check func(p listed)) {
	t.Helper()
	all, err := packages()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	if len(all) < 2 {
		t.Fatalf("go list found %d packages", len(all))
	}
	for _, p := range all {
		check(p)
	}
}

// within reports whether folder is one of roots or lies in one.
func within(folder string, roots ...string) bool {
	return slices.ContainsFunc(roots, func(r string) bool { return folder == r || strings.HasPrefix(folder, r+"/") })
}

// mayImport reports whether the layers let folder import another of this
// module's folders: an arrow only goes down.
func mayImport(folder, other string) bool {
	subject, _, mechanism := strings.Cut(folder, "/")
	switch {
	case within(folder, "cmd", "deploy"):
		return true
	case within(other, "internal"):
		return true
	case subject == "internal":
		return false
	case mechanism && subject == "agent":
		_, isNoun := nouns[other]
		return isNoun
	case mechanism && (other == subject || within(other, folder)): // what lies below it is its own
		return true
	default:
		return slices.Contains(nouns[subject], other)
	}
}

func TestLayers(t *testing.T) {
	eachPackage(t, func(p listed) {
		if _, isNoun := nouns[p.Folder]; !isNoun && !strings.Contains(p.Folder, "/") && p.Folder != "" {
			t.Errorf("%s is a new subject: say in nouns what it may import", p.Folder)
		}
		for _, i := range p.Imports {
			other, ours := strings.CutPrefix(i, module+"/")
			if ours && !mayImport(p.Folder, other) {
				t.Errorf("%s imports %s, which the layers of ARCHITECTURE.md do not allow", p.Folder, other)
			}
		}
	})
}

func TestMayImport(t *testing.T) {
	for _, c := range []struct {
		folder, other string
		want          bool
	}{
		{"cmd/glance-dtn", "agent/jobs", true},
		{"agent", "glance", true},
		{"agent", "glance/catalog", false},
		{"agent/api", "mover", true},
		{"agent/api", "agent/jobs", false},
		{"agent/api", "internal/pki", true},
		{"glance", "mover", false},
		{"mover/dtn", "mover", true},
		{"mover/dtn", "mover/stream", false},
		{"mover/stream", "mover/stream/pace", true},
		{"mover/stream/pace", "mover", true},
		{"mover/stream/pace", "mover/stream", false},
		{"mover/dtn", "mover/stream/pace", false},
		{"mover/dtn", "glance", false},
		{"tuning/pcp", "mover", true},
		{"internal/pki", "glance", false},
	} {
		if got := mayImport(c.folder, c.other); got != c.want {
			t.Errorf("mayImport(%q, %q) = %v, want %v", c.folder, c.other, got, c.want)
		}
	}
}

func TestThirdPartyModulesStayWithTheirKeepers(t *testing.T) {
	eachPackage(t, func(p listed) {
		for _, i := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			if host, _, _ := strings.Cut(i, "/"); !strings.Contains(host, ".") || within(i, module) {
				continue
			}
			if within(i, testModules...) {
				if slices.Contains(p.Imports, i) && !p.testOnly() {
					t.Errorf("%s imports %s, which is for tests", p.Folder, i)
				}
				continue
			}
			var folders []string
			for prefix, kept := range keepers {
				if within(i, prefix) || strings.HasPrefix(i, prefix+"/v") {
					folders = kept
				}
			}
			if !within(p.Folder, folders...) {
				t.Errorf("%s imports %s, which is kept by %q", p.Folder, i, folders)
			}
			if _, isNoun := nouns[p.Folder]; isNoun && p.Folder != "agent" && slices.Contains(p.Imports, i) {
				t.Errorf("%s holds nouns and imports %s", p.Folder, i)
			}
		}
	})
}

func TestOnlyTestsImportTestPackages(t *testing.T) {
	eachPackage(t, func(p listed) {
		for _, i := range p.Imports {
			if within(i, module) && strings.HasSuffix(i, "test") && !p.testOnly() {
				t.Errorf("%s imports %s outside its tests", p.Folder, i)
			}
		}
	})
}

func TestEveryPackageHasAComment(t *testing.T) {
	eachPackage(t, func(p listed) {
		if len(p.GoFiles) > 0 && p.Doc == "" {
			t.Errorf("package %s has no comment", p.ImportPath)
		}
	})
}

// TestOnlyCommandsTouchTheProcess holds that a library neither ends the process
// nor reads its environment and flags, and that nothing starts a shell.
func TestOnlyCommandsTouchTheProcess(t *testing.T) {
	commandsOnly := []string{
		"os.Exit", "os.Getenv", "os.LookupEnv", "os.Environ", "os.ExpandEnv",
		"log.Fatal", "log.Fatalf", "log.Fatalln", "log.Panic", "log.Panicf", "log.Panicln",
	}
	shell := regexp.MustCompile(`"(?:/bin/)?(?:ba|da)?sh",\s*"-c`)
	eachPackage(t, func(p listed) {
		for _, name := range p.GoFiles {
			file := filepath.Join(p.Dir, name)
			src, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if shell.Match(src) {
				t.Errorf("%s starts a shell", file)
			}
			if within(p.Folder, "cmd") {
				continue
			}
			if slices.Contains(p.Imports, "flag") {
				t.Errorf("%s imports flag", p.Folder)
			}
			tree, err := parser.ParseFile(token.NewFileSet(), file, src, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(tree, func(n ast.Node) bool {
				if s, ok := n.(*ast.SelectorExpr); ok {
					if x, ok := s.X.(*ast.Ident); ok && slices.Contains(commandsOnly, x.Name+"."+s.Sel.Name) {
						t.Errorf("%s uses %s.%s", file, x.Name, s.Sel.Name)
					}
				}
				return true
			})
		}
	})
}

func TestDocumentsNameExistingTargets(t *testing.T) {
	makefile, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	documents, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(documents, "CHANGELOG.md") {
		t.Error("there is no CHANGELOG.md")
	}
	command := regexp.MustCompile("(?m)(?:`|^[ \t]*(?:[$#] )?)(?:[A-Z_]+=\\S* )*make ([a-z-]+)")
	for _, name := range documents {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range command.FindAllSubmatch(text, -1) {
			if !regexp.MustCompile(`(?m)^` + string(m[1]) + `:`).Match(makefile) {
				t.Errorf("%s says %q, and the Makefile has no such target", name, m[0])
			}
		}
	}
}

// TestNoPathOfOneMachine holds that no text file names a place that only the
// machine has on which it was written.
func TestNoPathOfOneMachine(t *testing.T) {
	local := regexp.MustCompile("(?m)(?:^|[\\s\"'`=:(>])/(?:work|farm)(?:/|\\b)")
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (path.Base(name) == ".git" || name == "bin" || name == "dist"):
			return fs.SkipDir
		case !d.Type().IsRegular() || name == ".git": // a file in a linked worktree
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if m := local.Find(text); m != nil && utf8.Valid(text) {
			t.Errorf("%s names %q", name, m)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
