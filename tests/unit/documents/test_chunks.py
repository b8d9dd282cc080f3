from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.documents import chunks, code_structure
from edgechat.documents.chunks import MAX_CHARS, split
from edgechat.documents.text import Chunk, ExtractedDocument, Section

NAMES = (
    "a.md",
    "a.py",
    "a.txt",
    "a.csv",
    "a.rst",
    "a.js",
    "a.c",
    "a.rs",
    "a.go",
    "a.html",
    "a.pdf",
    "a.sql",
    "a.toml",
    "a",
)
LINES = st.sampled_from([
    "", " ", "# Title", "## Part two ##", "```python", "```", "~~~", "Heading\n=======", "Heading\n-------",
    "def f(x):",
    "    def method(self):", "class A:", "    return 1", "@decorator", "# comment",
    "function f(a) {", "export class B {", "}",
    "int main(int argc, char **argv) {",
    "pub fn run() -> i32 {",
    "impl Display for X {", "func (s *S) Run() error {", "a,b,c",
    "CREATE TABLE t (x int);", "[section]", "Word. " * 50, "x" * 2500, "\u3002" * 30, "\ttab", "\f", "\u2028", "~~~~",
    "* item", "-----",
    "A paragraph of some length, with a few words in it, and then some more of them. And so on.",
])  # fmt: skip
TEXTS = st.lists(LINES | st.text(max_size=40), max_size=60).map("\n".join)
EXAMPLES = Path(code_structure.__file__)


def make_document(*texts: str, first_line: int | None = 1, page: int | None = None) -> ExtractedDocument:
    pages = range(page, page + len(texts)) if page is not None else [None] * len(texts)
    return ExtractedDocument(
        sections=tuple(Section(text=t, first_line=first_line, page=p) for t, p in zip(texts, pages, strict=True))
    )


def squeeze(text: str) -> str:
    return "".join(text.split())


@given(TEXTS, st.sampled_from(NAMES))
def test_chunks_have_all_text_in_order_and_limited_length(text: str, name: str) -> None:
    found = split(make_document(text), name)
    assert squeeze("".join(c.text for c in found)) == squeeze(text)
    assert all(0 < len(c.text) <= MAX_CHARS and c.text.strip() for c in found)


@given(TEXTS, st.sampled_from(NAMES), st.integers(1, 5))
def test_lines_of_chunks_contain_their_text(text: str, name: str, first_line: int) -> None:
    lines = text.split("\n")
    for chunk in split(make_document(text, first_line=first_line), name):
        assert chunk.first_line is not None
        assert chunk.last_line is not None
        place = "\n".join(lines[chunk.first_line - first_line : chunk.last_line - first_line + 1])
        assert chunk.text in place
        assert chunk.text.count("\n") == chunk.last_line - chunk.first_line


@given(st.lists(TEXTS, max_size=6), st.sampled_from(NAMES))
def test_pages_of_chunks_contain_their_text(pages: list[str], name: str) -> None:
    document = make_document(*pages, first_line=None, page=1)
    found = split(document, name)
    assert squeeze("".join(c.text for c in found)) == squeeze("".join(pages))
    for chunk in found:
        assert chunk.page is not None
        assert chunk.last_page is not None
        assert squeeze(chunk.text) in squeeze("".join(pages[chunk.page - 1 : chunk.last_page]))
        assert chunk.page == chunk.last_page or len(chunk.text) <= chunks.TARGET_CHARS + 2
        assert chunk.first_line is None


@given(TEXTS, st.sampled_from(NAMES))
def test_split_is_repeatable(text: str, name: str) -> None:
    assert split(make_document(text), name) == split(make_document(text), name)


def test_markdown_chunk_has_path_of_headings_and_no_heading_from_code() -> None:
    body = "Text of the part. " * 40
    text = f"# Guide\n\n{body}\n\n## Install\n\n### Linux\n\n{body}\n\n```\n# not a heading\n```\n\n## Use\n\n{body}"
    found = split(make_document(text), "a.md")
    assert [c.heading for c in found] == ["Guide", "Guide > Install > Linux", "Guide > Use"] or [
        c.heading for c in found
    ] == ["Guide", "Guide > Install", "Guide > Use"]
    assert "not a heading" in found[1].text


def test_python_functions_are_chunks_with_qualified_names_and_decorators() -> None:
    body = "".join(f"        total += {i}  # a line of code\n" for i in range(20))
    text = (
        f"import os\n\nclass Cat:\n    def purr(self):\n{body}\n    @property\n    # why\n    def name(self):\n{body}\n"
    )
    text += f"def f():\n{body}"
    found = split(make_document(text), "a.py")
    assert [c.heading for c in found] == ["Cat", "Cat.name", "f"]
    assert found[1].text.startswith("    @property\n    # why\n    def name")
    assert found[2].text.startswith("def f")


def test_python_names_are_those_of_the_parser() -> None:
    import ast

    text = EXAMPLES.read_text("utf-8")
    names = [name.rpartition(".")[2] for _, name in code_structure.find_definitions(text, "py")]
    nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    assert names == [n.name for n in sorted(nodes, key=lambda n: n.lineno)]


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        (
            "a.js",
            "export async function load(a, b) {\n}\nconst add = (a) => {\n};\nclass A {\n  run(x) {\n    if (x) {\n",
            "load add A A.run",
        ),
        (
            "a.ts",
            "export interface Shape {\n}\ntype Id = string;\nexport default class B {\n  get size(): number {\n",
            "Shape Id B B.size",
        ),
        (
            "a.rs",
            "pub fn run(x: i32) -> i32 {\n}\nimpl Display for X {\n    fn fmt(&self) {\n",
            "run Display_for_X Display_for_X.fmt",
        ),
        (
            "a.go",
            "func (s *Server) Run() error {\n\tfmt.Println()\n}\ntype Server struct {\n",
            "Run Server",
        ),
        (
            "a.c",
            "static int add(int a, int b) {\n    return f(a) + b;\n}\nstruct point {\n    int x;\n};\nint x = f(3);\n",
            "add point",
        ),
        (
            "a.java",
            "public class A {\n    public static void main(String[] args) {\n        run(args);\n        if (x) {\n",
            "A A.main",
        ),
        (
            "a.rb",
            "module M\n  class C\n    def go!\n",
            "M M.C M.C.go!",
        ),
        (
            "a.sh",
            "build() {\n  make\n}\nfunction clean {\n",
            "build clean",
        ),
        (
            "a.sql",
            "CREATE TABLE IF NOT EXISTS users (id int);\ncreate index by_id on users (id);\n",
            "users by_id",
        ),
        (
            "a.toml",
            '[tool.ruff]\nselect = ["ALL"]\n[[items]]\n',
            "tool.ruff items",
        ),
        (
            "a.kt",
            "data class P(val x: Int)\nfun main(args: Array<String>) {\n",
            "P main",
        ),
    ],
)
def test_definitions_of_languages_are_found(name: str, text: str, names: str) -> None:
    found = [n.replace(" ", "_") for _, n in code_structure.find_definitions(text, name.partition(".")[2])]
    assert found == names.split()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "unit", ["a*&", " ", "\t", "public ", "a::b<", "(", "a(", "template<", "template<a> ", "#", "=", "-", "`", "\n\n"]
)
def test_hostile_line_is_split_in_linear_time(name: str, unit: str) -> None:
    text = unit * (200_000 // len(unit)) + "(x"  # took hours with patterns that are quadratic or worse
    assert squeeze("".join(c.text for c in split(make_document(text), name))) == squeeze(text)


@pytest.mark.parametrize("name", ["a.cpp", "a.php", "a.js", "a.rs", "a.sql"])
@pytest.mark.parametrize(
    ("start", "unit", "end"),
    [
        ("class ", "a", ";"),
        ("class ", " ", ";"),
        ("public", " ", ";"),
        ("function", " ", ";"),
        ("template<", "> ", ";"),
        ("int f(", ")", ";"),
        ("create table", " ", ";"),
    ],
)
def test_hostile_line_after_a_word_is_split_in_linear_time(name: str, start: str, unit: str, end: str) -> None:
    text = f"{start}{unit * (600_000 // len(unit))}{end}"  # took many minutes with patterns that are quadratic
    assert squeeze("".join(c.text for c in split(make_document(text), name))) == squeeze(text)


def test_definitions_of_templates_are_found() -> None:
    text = (
        "template <typename T, class U = std::vector<T>> class Stack : public Base {\n"
        "template<class T> static inline T max(const T& a, const T& b) {\n"
        "template<> struct hash<Key> {\n"
        "template<class T> class Forward;\n"
        "void Stack<T>::push(T value,\n"
        "int count(int a) const noexcept\n"
    )
    found = [name for _, name in code_structure.find_definitions(text, "cpp")]
    assert found == ["Stack", "max", "hash<Key>", "count"]


def test_table_is_split_at_rows_with_its_columns_as_heading() -> None:
    rows = [f"{i},name {i},{i * 3}" for i in range(500)]
    found = split(make_document("\n".join(["id,name,value", *rows])), "a.csv")
    assert {c.heading for c in found} == {"id,name,value"}
    assert all(re.fullmatch(r"\d+,name \d+,\d+", line) for c in found[1:] for line in c.text.split("\n"))


def test_reports_underlined_headings_of_restructuredtext() -> None:
    body = "Words of this part. " * 40
    text = f"=====\nTitle\n=====\n\n{body}\n\nPart\n----\n\n{body}\n\nNext\n----\n\n{body}"
    assert [c.heading for c in split(make_document(text), "a.rst")] == ["Title", "Title > Part", "Title > Next"]


def test_short_pages_are_one_chunk_with_both_pages() -> None:
    found = split(make_document("one", "two", "x " * 500, first_line=None, page=4), "a.pdf")
    assert [(c.page, c.last_page) for c in found] == [(4, 6)]
    found = split(make_document("one", "two", "x " * 900, first_line=None, page=4), "a.pdf")
    assert [(c.page, c.last_page) for c in found] == [(4, 5), (6, 6)]


def test_sections_have_their_headings() -> None:
    document = ExtractedDocument(sections=(Section(text="# Sales\n\nText", heading="Part 1", page=1),))
    assert split(document, "a.pptx") == [Chunk(text="# Sales\n\nText", heading="Part 1 > Sales", page=1, last_page=1)]


def test_sheet_has_its_name_and_columns_as_heading() -> None:
    document = ExtractedDocument(sections=(Section(text="Date | Amount\n1 | 2", heading="Sheet 1", page=1),))
    assert [c.heading for c in split(document, "a.xlsx")] == ["Sheet 1 > Date | Amount"]
