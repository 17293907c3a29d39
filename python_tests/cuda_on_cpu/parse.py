"""PTX text as modules of functions, variables and statements. Knows syntax, no instruction."""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass, field

from .errors import Unsupported

SIZES = {
    **dict.fromkeys(("b8", "u8", "s8"), 1),
    **dict.fromkeys(("b16", "u16", "s16", "f16", "bf16"), 2),
    **dict.fromkeys(("b32", "u32", "s32", "f32", "f16x2", "bf16x2", "tf32"), 4),
    **dict.fromkeys(("b64", "u64", "s64", "f64"), 8),
    "b128": 16,  # as two registers of 64 bits, the lower first
    "pred": 0,
}


@dataclass
class Variable:
    """A .global, .const, .shared, .local or .param variable."""

    name: str
    space: str
    alignment: int
    size: int  # bytes; 0 for an extern array
    data: list[str] = field(default_factory=list)
    element: str = "b8"


@dataclass
class Statement:
    """An instruction, a label ("name:"), "{", "}" or a declaration, and where it stands."""

    text: str
    line: int
    source: tuple[str, int] | None = None


@dataclass
class Function:
    name: str
    is_entry: bool
    params: list[Variable]
    results: list[Variable]
    body: list[Statement]
    directives: str = ""


@dataclass
class Module:
    functions: dict[str, Function]
    variables: dict[str, Variable]
    target: str


_VARIABLE = re.compile(
    r"(?:\.(?:visible|extern|weak|common)\s+)*\.(global|const|shared|local|param)\s+"
    r"(?:\.align\s+(\d+)\s+)?(?:\.(v2|v4)\s+)?\.(\w+)\s+"
    r"(?:\.ptr\s*(?:\.(?:global|shared|const|local)\s*)?(?:\.align\s+\d+\s*)?)?"
    r"([\w$]+)\s*(?:\[(\d*)\])?\s*(?:=\s*(.*))?$",
    re.S,
)
_LABEL = re.compile(r"([\w$%]+)\s*:(?!:)")
_TO_LINE_END = re.compile(r"\.(?:version|target|address_size|file|loc|pragma)\b")


def parse_variable(text: str, line: int) -> Variable:
    found = _VARIABLE.match(" ".join(text.split()))
    if not found or found[4] not in SIZES:
        raise Unsupported(f"PTX line {line}: declaration {text!r}")
    space, alignment, vector, element, name, count, data = found.groups()
    size = SIZES[element] * {"v2": 2, "v4": 4, None: 1}[vector]
    total = size if count is None else size * int(count or 0)
    values = re.findall(r"[^\s,{}]+", data) if data else []
    return Variable(name, space, int(alignment or size), total, values, element)


class _Parser:
    def __init__(self, text: str):
        without = re.sub(r"/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.S)
        self.text = re.sub(r"//[^\n]*", "", without)
        self.starts = [0, *(m.end() for m in re.finditer("\n", self.text))]
        self.position = 0
        # .file may come after the code that refers to it.
        found = re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', self.text, re.M)
        self.files = {int(number): name for number, name in found}
        self.target = ""
        self.source: tuple[str, int] | None = None

    def line(self) -> int:
        return bisect.bisect_right(self.starts, self.position)

    def skip_space(self) -> bool:
        while self.position < len(self.text) and self.text[self.position].isspace():
            self.position += 1
        return self.position < len(self.text)

    def take_line(self) -> str:
        end = self.text.find("\n", self.position)
        end = len(self.text) if end < 0 else end
        out, self.position = self.text[self.position : end], end
        return out

    def take_until(self, stops: str) -> tuple[str, str]:
        found = re.compile(f"[{stops}]").search(self.text, self.position)
        if not found:
            raise Unsupported(f"PTX line {self.line()}: no end of what begins here")
        start, self.position = self.position, found.end()
        return self.text[start : found.start()], found[0]

    def skip_block(self) -> None:
        depth = 0
        while self.position < len(self.text):
            depth += {"{": 1, "}": -1}.get(self.text[self.position], 0)
            self.position += 1
            if depth == 0:
                return
        raise Unsupported("a section without its end")

    def directive_line(self) -> bool:
        if not _TO_LINE_END.match(self.text, self.position):
            return False
        words = self.take_line().rstrip(";").split()
        if words[0] == ".target":
            self.target = words[1].rstrip(",")
        elif words[0] == ".loc":
            name, line = self.files.get(int(words[1])), int(words[2])
            self.source = (name, line) if name and line else None
        return True

    def module(self) -> Module:
        functions: dict[str, Function] = {}
        variables: dict[str, Variable] = {}
        while self.skip_space():
            if self.directive_line():
                continue
            if self.text.startswith(".section", self.position):
                self.position = self.text.index("{", self.position)
                self.skip_block()
                continue
            line = self.line()
            head = re.compile(r"[^;{]*").match(self.text, self.position)[0]
            if re.search(r"\.(entry|func)\b", head):
                text, stop = self.take_until("{;")
                if stop == "{":
                    function = self.function(text, line)
                    functions[function.name] = function
                continue
            text, _ = self.take_until(";")
            variable = parse_variable(text.strip(), line)
            variables[variable.name] = variable
        return Module(functions, variables, self.target)

    def function(self, head: str, line: int) -> Function:
        found = re.search(
            r"\.(entry|func)\s*(?:\((?P<results>[^)]*)\))?\s*(?P<name>[\w$]+)\s*"
            r"(?:\((?P<params>[^)]*)\))?(?P<rest>.*)",
            head,
            re.S,
        )
        params, results = (
            [
                parse_variable(part.strip(), line)
                for part in (found[g] or "").split(",")
                if part.strip()
            ]
            for g in ("params", "results")
        )
        body = self.body()
        return Function(
            found["name"],
            found[1] == "entry",
            params,
            results,
            body,
            " ".join(found["rest"].split()),
        )

    def body(self) -> list[Statement]:
        out: list[Statement] = []
        depth = 1
        self.source = None
        while self.skip_space():
            if self.directive_line():
                continue
            line = self.line()
            character = self.text[self.position]
            if character in "{}":
                self.position += 1
                depth += 1 if character == "{" else -1
                if depth == 0:
                    return out
                out.append(Statement(character, line))
                continue
            label = _LABEL.match(self.text, self.position)
            if label:
                self.position = label.end()
                out.append(Statement(label[1] + ":", line))
                continue
            text, _ = self.take_until(";")
            out.append(Statement(" ".join(text.split()), line, self.source))
        raise Unsupported(f"PTX line {self.line()}: a function without its end")


def parse(text: str) -> Module:
    """The functions and variables of a PTX module.

    Raises:
        Unsupported: for syntax that is not known.
    """
    return _Parser(text).module()
