package nfs

import (
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// Export is a directory that a server offers, and to whom, as in exports(5).
type Export struct {
	Path    string // absolute
	Clients []Client
}

// Client is one host or set of hosts that may mount an export.
type Client struct {
	// Host is a name, an address, a network in CIDR or address/netmask form, a name
	// with wildcards, @netgroup, gss/flavour, or * for everyone.
	Host    string
	Options Options
}

// String returns the export as one line of exports(5), without a line feed. Only
// FormatExports checks that it can be read again.
func (e Export) String() string {
	var b strings.Builder
	b.WriteString(escape(e.Path, exportsSpecial))
	for _, c := range e.Clients {
		b.WriteString(" " + escape(c.Host, exportsSpecial))
		if len(c.Options) > 0 {
			b.WriteString("(" + escape(c.Options.String(), exportsSpecial) + ")")
		}
	}
	return b.String()
}

// FormatExports returns a file for /etc/exports.d, whose name must end in .exports.
// It fails where the file would not say what the exports say.
func FormatExports(exports ...Export) (string, error) {
	var b strings.Builder
	for _, e := range exports {
		line := e.String() + "\n"
		if again, err := ParseExports(strings.NewReader(line)); err != nil {
			return "", err
		} else if len(again) != 1 || !sameExport(e, again[0]) {
			return "", fmt.Errorf("exports(5) has no way to say %q: check its path, its clients and their options", e)
		}
		b.WriteString(line)
	}
	return b.String(), nil
}

func sameExport(a, b Export) bool {
	return a.Path == b.Path && slices.EqualFunc(a.Clients, b.Clients, func(a, b Client) bool {
		return a.Host == b.Host && slices.Equal(a.Options, b.Options)
	})
}

// ParseExports reads exports(5), and what exportfs -s prints, save for paths with
// quotation marks, which that leaves as they are. There is one Export for each line,
// in order, so that a path can come more than once. The defaults of a line (-options)
// stand first in the options of each of its clients, and options without a client
// are those of everyone, as exportfs(8) takes them.
func ParseExports(r io.Reader) ([]Export, error) {
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("read exports: %w", err)
	}
	var exports []Export
	for l := (lexer{rest: string(text), line: 1}); l.rest != ""; {
		line := l.line
		words, err := l.words()
		if err == nil && len(words) > 0 {
			var e Export
			if e, err = parseExport(words); err == nil {
				exports = append(exports, e)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("exports, line %d: %w", line, err)
		}
	}
	return exports, nil
}

// lexer splits exports(5) into words.
type lexer struct {
	rest string
	line int
}

const blanks = " \t\n\r\v\f"

// words returns the words of the next line, without quotes and escapes; none for a
// line without words.
func (l *lexer) words() ([]string, error) {
	var words []string
	var word []byte
	inWord, quoted := false, false
	for end := false; !end; {
		c, literal := byte('\n'), false
		if l.rest != "" {
			c, literal = l.next()
		}
		switch end = c == '\n' && !literal; {
		case end && quoted:
			return nil, errors.New("a quotation mark is not closed")
		case c == '"' && !literal:
			inWord, quoted = true, !quoted
		case literal || quoted:
			inWord, word = true, append(word, c)
		case strings.IndexByte(blanks, c) >= 0:
			if inWord {
				words = append(words, string(word))
			}
			inWord, word = false, nil
		case c == '#' && !inWord:
			comment, _, _ := strings.Cut(l.rest, "\n")
			l.rest = l.rest[len(comment):]
		default:
			inWord, word = true, append(word, c)
		}
	}
	return words, nil
}

// next takes one byte; a literal one was escaped. A line goes on after a backslash
// as after a space.
func (l *lexer) next() (c byte, literal bool) {
	n := 1
	if c, literal = octal(l.rest); literal {
		n = 4
	} else if strings.HasPrefix(l.rest, "\\\n") {
		c, n = ' ', 2
	} else {
		c = l.rest[0]
	}
	l.line += strings.Count(l.rest[:n], "\n")
	l.rest = l.rest[n:]
	return c, literal
}

func parseExport(words []string) (Export, error) {
	e := Export{Path: words[0]}
	if !strings.HasPrefix(e.Path, "/") {
		return Export{}, fmt.Errorf("%q is not an absolute path", e.Path)
	}
	words = words[1:]
	var defaults Options
	if len(words) > 0 && strings.HasPrefix(words[0], "-") {
		if strings.ContainsAny(words[0], "()") {
			return Export{}, fmt.Errorf("default options %q have a parenthesis", words[0])
		}
		defaults, words = exportOptions(words[0][1:]), words[1:]
	}
	if len(words) == 0 {
		return Export{}, fmt.Errorf("%s is exported to no client: write * for everyone", e.Path)
	}
	for _, w := range words {
		c, err := parseClient(w)
		if err != nil {
			return Export{}, err
		}
		if len(defaults) > 0 {
			c.Options = slices.Concat(defaults, c.Options)
		}
		e.Clients = append(e.Clients, c)
	}
	return e, nil
}

// parseClient reads host, host(options) or (options).
func parseClient(word string) (Client, error) {
	host, list, found := strings.Cut(word, "(")
	if found {
		end := strings.IndexByte(list, ')')
		if end < 0 || end != len(list)-1 {
			return Client{}, fmt.Errorf("client %q: want host(option,option)", word)
		}
		list = list[:end]
		if host == "" {
			host = "*"
		}
	}
	switch {
	case host == "":
		return Client{}, errors.New("a client has an empty name: write * for everyone")
	case host[0] == '-':
		return Client{}, fmt.Errorf("client %q: default options stand before the first client", word)
	}
	return Client{host, exportOptions(list)}, nil
}

// exportOptions splits a list of exports(5), where quotes do not keep commas.
func exportOptions(list string) Options {
	var o Options
	for option := range strings.SplitSeq(list, ",") {
		if option != "" {
			o = append(o, option)
		}
	}
	return o
}

// Acknowledges tells what a server with these exports promises of a directory: with
// sync, that its disk has what it acknowledges, whoever the client is. The export
// that counts is the nearest at or above the directory. known is false when there is
// none: another server may export it.
func Acknowledges(exports []Export, dir string) (sync, known bool, err error) {
	for _, p := range slices.Backward(prefixes(path.Clean(dir))) {
		for _, e := range exports {
			if path.Clean(e.Path) != p {
				continue
			}
			for _, c := range e.Clients {
				o, err := c.Options.Export()
				if err != nil {
					return false, false, fmt.Errorf("export %s to %s: %w", e.Path, c.Host, err)
				}
				sync = o.Sync && (sync || !known)
				known = true
			}
		}
		if known {
			return sync, true, nil
		}
	}
	return false, false, nil
}

// ParseExportfs reads what exportfs -v prints: the options in effect, complete with
// defaults. Clients of one path are brought together under it. That text escapes
// nothing: paths with line feeds, or with spaces at their end, are told wrongly,
// and rightly by exportfs -s, which ParseExports reads. Neither shows subtree_check,
// the opposite of the default; it is added here.
func ParseExportfs(r io.Reader) ([]Export, error) {
	var exports []Export
	add := func(path, client string) error {
		c, err := parseClient(client)
		if err != nil {
			return err
		}
		if !strings.HasPrefix(path, "/") {
			return fmt.Errorf("%q is not an absolute path", path)
		}
		if c.Host == "<world>" {
			c.Host = "*"
		}
		if !slices.Contains(c.Options, "no_subtree_check") {
			c.Options = append(c.Options, "subtree_check") // the one that is in effect where nothing is shown
		}
		i := slices.IndexFunc(exports, func(e Export) bool { return e.Path == path })
		if i < 0 {
			i, exports = len(exports), append(exports, Export{Path: path})
		}
		exports[i].Clients = append(exports[i].Clients, c)
		return nil
	}
	// A path of more than 14 bytes has a line of its own, and the next line begins
	// with two tabs. A shorter one is padded to 14.
	pending := ""
	split := func() error {
		line := pending
		pending = ""
		if line == "" {
			return nil
		}
		i := strings.LastIndexByte(line, '\t')
		if i < 0 {
			return fmt.Errorf("no client follows %q", line)
		}
		return add(strings.TrimRight(line[:i], " "), line[i+1:])
	}
	err := eachLine(r, func(line string) error {
		if client, wrapped := strings.CutPrefix(line, "\t\t"); wrapped && pending != "" {
			path := pending
			pending = ""
			return add(path, client)
		}
		err := split()
		pending = line
		return err
	})
	if err == nil {
		err = split()
	}
	if err != nil {
		return nil, fmt.Errorf("output of exportfs -v: %w", err)
	}
	return exports, nil
}
