// SPDX-License-Identifier: Apache-2.0

package depcheck

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

const licenceLine = "// SPDX-License-Identifier: Apache-2.0\n"

// Check returns everything that breaks the rules in a source tree, sorted: "file:line: what".
// Tests are held to the licence line only. Folders that the go command ignores are left out.
func Check(tree fs.FS) ([]string, error) {
	c := &checker{files: token.NewFileSet(), shared: map[string]map[string]bool{}, parsed: map[string][]source{}}
	if err := fs.WalkDir(tree, ".", func(name string, entry fs.DirEntry, err error) error {
		switch base := path.Base(name); {
		case err != nil:
			return err
		case entry.IsDir() && name != "." && (base == "testdata" || base == "vendor" || base[0] == '.' || base[0] == '_'):
			return fs.SkipDir
		case entry.IsDir() || path.Ext(name) != ".go":
			return nil
		}
		text, err := fs.ReadFile(tree, name)
		if err != nil {
			return err
		}
		return c.read(name, text)
	}); err != nil {
		return nil, err
	}
	for _, folder := range c.parsed {
		for _, s := range folder {
			c.imports(s)
			c.declarations(s)
			c.writes(s)
		}
	}
	slices.Sort(c.problems)
	return slices.Compact(c.problems), nil
}

type source struct {
	folder string
	file   *ast.File
}

type checker struct {
	files    *token.FileSet
	parsed   map[string][]source        // by folder
	shared   map[string]map[string]bool // the package-level variables, by folder
	problems []string
}

func (c *checker) report(at token.Pos, format string, args ...any) {
	p := c.files.Position(at)
	c.problems = append(c.problems, fmt.Sprintf("%s:%d: %s", p.Filename, p.Line, fmt.Sprintf(format, args...)))
}

func (c *checker) read(name string, text []byte) error {
	if !strings.HasPrefix(string(text), licenceLine) {
		c.problems = append(c.problems, name+":1: the first line is not "+strings.TrimSpace(licenceLine))
	}
	if strings.HasSuffix(name, "_test.go") {
		return nil
	}
	file, err := parser.ParseFile(c.files, name, text, parser.ParseComments)
	if err != nil {
		return err
	}
	folder := path.Dir(name)
	c.parsed[folder] = append(c.parsed[folder], source{folder, file})
	if c.shared[folder] == nil {
		c.shared[folder] = map[string]bool{}
	}
	for _, spec := range variables(file) {
		for _, id := range spec.Names {
			c.shared[folder][id.Name] = true
		}
	}
	return nil
}

func (c *checker) imports(s source) {
	if _, ok := roomOf(s.folder); !ok {
		c.report(s.file.Package, "%s %s", s.folder, mayImport(s.folder, s.folder))
	}
	for _, spec := range s.file.Imports {
		name, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue
		}
		why := mayUse(s.folder, name)
		if within(name, Module) {
			to := strings.TrimPrefix(strings.TrimPrefix(name, Module), "/")
			why = mayImport(s.folder, path.Clean(to))
		}
		if why != "" {
			c.report(spec.Pos(), "%s %s", s.folder, why)
		}
	}
}

// variables returns the package-level variables of a file.
func variables(file *ast.File) []*ast.ValueSpec {
	var specs []*ast.ValueSpec
	for _, d := range file.Decls {
		if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.VAR {
			for _, s := range g.Specs {
				if v, ok := s.(*ast.ValueSpec); ok {
					specs = append(specs, v)
				}
			}
		}
	}
	return specs
}

// declarations finds init functions, and package-level variables that are no constants in disguise.
func (c *checker) declarations(s source) {
	for _, d := range s.file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
			c.report(f.Pos(), "an init function: what must happen belongs into New or Run")
		}
	}
	embedded := embeds(c.files, s.file)
	for _, spec := range variables(s.file) {
		for i, id := range spec.Names {
			switch {
			case id.Name == "_", embedded[c.files.Position(spec.Pos()).Line]:
			case len(spec.Values) == 0:
				// A string that the linker sets (-X) looks like this; anything else is made to be changed.
				if t, ok := spec.Type.(*ast.Ident); !ok || t.Name != "string" {
					c.report(id.Pos(), "%s is a variable of the whole package", id.Name)
				}
			case i >= len(spec.Values) || !constant(spec.Values[i]):
				c.report(id.Pos(), "%s is a variable of the whole package, and not a table, an error or a pattern", id.Name)
			}
		}
	}
}

// embeds returns the lines that follow a go:embed directive.
func embeds(files *token.FileSet, file *ast.File) map[int]bool {
	lines := map[int]bool{}
	for _, group := range file.Comments {
		for _, comment := range group.List {
			if strings.HasPrefix(comment.Text, "//go:embed ") {
				lines[files.Position(comment.Pos()).Line+1] = true
			}
		}
	}
	return lines
}

// constant tells whether an expression has a value that Go can't declare as a constant, and that is one all the same:
// literals and tables of them, errors, patterns, parsed addresses.
func constant(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.BasicLit, *ast.Ident, *ast.SelectorExpr:
		return true
	case *ast.ParenExpr:
		return constant(e.X)
	case *ast.UnaryExpr:
		_, pointer := e.X.(*ast.CompositeLit)
		return !pointer && constant(e.X)
	case *ast.BinaryExpr:
		return constant(e.X) && constant(e.Y)
	case *ast.KeyValueExpr:
		return constant(e.Value)
	case *ast.CompositeLit:
		return !slices.ContainsFunc(e.Elts, func(x ast.Expr) bool { return !constant(x) })
	case *ast.FuncLit:
		return false
	case *ast.CallExpr:
		return pure(e)
	}
	return false
}

// pure tells whether a call gives the same unchangeable value each time, of constants.
func pure(call *ast.CallExpr) bool {
	if slices.ContainsFunc(call.Args, func(x ast.Expr) bool { return !constant(x) }) {
		return false
	}
	switch f := call.Fun.(type) {
	case *ast.ArrayType: // []byte("…")
		return true
	case *ast.Ident: // a conversion, or min and the like; own functions are not
		return slices.Contains([]string{"string", "byte", "int", "int64", "uint16", "uint32", "uint64", "len", "min", "max"}, f.Name)
	case *ast.SelectorExpr:
		pkg, ok := f.X.(*ast.Ident)
		return ok && slices.Contains([]string{
			"errors.New", "fmt.Errorf", "regexp.MustCompile", "net.ParseIP",
			"netip.MustParseAddr", "netip.MustParsePrefix", "netip.MustParseAddrPort", "netip.AddrFrom4", "netip.IPv6Unspecified",
			"time.Duration", "time.Unix", "big.NewInt",
		}, pkg.Name+"."+f.Sel.Name)
	}
	return false
}

// writes finds where a package changes one of its variables.
func (c *checker) writes(s source) {
	check := func(e ast.Expr) {
		id := base(e)
		if id == nil || id.Name == "_" || !c.shared[s.folder][id.Name] {
			return
		}
		// A name that means something nearer by is another one; names of other files are not resolved.
		if id.Obj != nil {
			if spec, ok := id.Obj.Decl.(*ast.ValueSpec); !ok || !slices.Contains(variables(s.file), spec) {
				return
			}
		}
		c.report(id.Pos(), "%s is changed here, and is a variable of the whole package", id.Name)
	}
	ast.Inspect(s.file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			if n.Tok != token.DEFINE {
				for _, e := range n.Lhs {
					check(e)
				}
			}
		case *ast.IncDecStmt:
			check(n.X)
		case *ast.CallExpr:
			if f, ok := n.Fun.(*ast.Ident); ok && (f.Name == "delete" || f.Name == "clear") && len(n.Args) > 0 {
				check(n.Args[0])
			}
		}
		return true
	})
}

// base is the variable that an expression such as x.f[i] is part of.
func base(e ast.Expr) *ast.Ident {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x
		case *ast.SelectorExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		default:
			return nil
		}
	}
}
