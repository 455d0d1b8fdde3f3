"""Finds code that changes a status past ``Lifecycle.transition()``: by reading the syntax tree, not by searching text.

What may stay: reading and comparing a status, filtering by it, a new row with its first status, and SQL that names a
status in a condition. Where a value cannot be followed (``setattr`` with a computed name, ``update(**unknown)``, SQL
whose columns are filled in), that is reported too: code that nobody can check does not belong there.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.structure import sql_guard
from tests.structure.values import FIELD, Values, is_field

# Calls that write their keywords into existing rows.
UPDATERS = frozenset({"update", "aupdate", "change"})
UPDATERS_WITH_DEFAULTS = frozenset({"update_or_create", "aupdate_or_create"})
# Calls that take names of columns to write: under which keyword, or as which argument.
COLUMN_NAMES = {
    "bulk_update": ("fields", 1),
    "abulk_update": ("fields", 1),
    "bulk_create": ("update_fields", 4),
    "abulk_create": ("update_fields", 4),
    "save": ("update_fields", 3),
    "asave": ("update_fields", 3),
    "save_base": ("update_fields", 4),
}
DICT_WRITERS = frozenset({"update", "setdefault", "__setitem__", "__ior__"})


@dataclass(frozen=True)
class Violation:
    path: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what}"


def check_tree(root: Path, folders: list[str], *, exempt: list[str]) -> list[Violation]:
    """All violations in the Python files under ``folders``; ``exempt`` are files or folders, relative to ``root``."""
    found: list[Violation] = []
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            if not any(name == each or name.startswith(f"{each}/") for each in exempt):
                found += check_source(path.read_text(), name)
    return found


def check_source(source: str, path: str = "<source>") -> list[Violation]:
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    outside, functions = _scopes(tree)
    found: set[tuple[int, str]] = set(_check(outside, Values(outside, tree), docstrings))
    for function in functions:
        nodes = list(ast.walk(function))
        found |= set(_check(nodes, Values(nodes, tree), docstrings))
    return [Violation(path, line, what) for line, what in sorted(found)]


def _scopes(tree: ast.Module) -> tuple[list[ast.AST], list[ast.AST]]:
    """The nodes outside of functions, and the functions that are not inside another one."""
    outside: list[ast.AST] = []
    functions: list[ast.AST] = []
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            functions.append(node)
        else:
            outside.append(node)
            waiting.extend(ast.iter_child_nodes(node))
    return outside, functions


def _check(nodes: list[ast.AST], values: Values, docstrings: set[int]) -> Iterator[tuple[int, str]]:
    for node in nodes:
        for target in _targets(node):
            if what := _assigned(target, values):
                yield target.lineno, what
        if isinstance(node, (ast.Assign, ast.AugAssign)) and (what := _whole_dict(node, values)):
            yield node.lineno, what
        if isinstance(node, ast.Call) and (what := _called(node, values)):
            yield node.lineno, what
        if id(node) in docstrings:
            continue
        if isinstance(node, (ast.Constant, ast.JoinedStr, ast.BinOp)) and (what := sql_guard.check(node)):
            yield node.lineno, what


# --- Assignments ------------------------------------------------------------------------------------------------------


def _targets(node: ast.AST) -> Iterator[ast.expr]:
    match node:
        case ast.Assign(targets=targets) | ast.Delete(targets=targets):
            parts = targets
        case ast.AnnAssign(target=target, value=ast.expr()) | ast.AugAssign(target=target):
            parts = [target]
        case ast.For(target=target) | ast.AsyncFor(target=target) | ast.comprehension(target=target):
            parts = [target]
        case ast.withitem(optional_vars=ast.expr() as target):
            parts = [target]
        case _:
            parts = []
    for part in parts:
        yield from (inner for inner in ast.walk(part) if isinstance(inner, (ast.Attribute, ast.Subscript)))


def _assigned(target: ast.expr, values: Values) -> str:
    match target:
        case ast.Attribute(attr=attr, ctx=ast.Store() | ast.Del()) if attr == FIELD:
            return "a status is assigned"
        case ast.Subscript(value=holder, slice=key, ctx=ast.Store() | ast.Del()) if _is_instance_dict(holder):
            return _judged([key], values, "a status is put into an instance's dict")
    return ""


def _whole_dict(node: ast.Assign | ast.AugAssign, values: Values) -> str:
    """``x.__dict__ = …`` and ``x.__dict__ |= …``."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    if any(_is_instance_dict(target) for target in targets):
        return _judged([node.value], values, "a status is put into an instance's dict")
    return ""


def _is_instance_dict(node: ast.expr) -> bool:
    match node:
        case ast.Attribute(attr="__dict__") | ast.Call(func=ast.Name(id="vars")):
            return True
    return False


# --- Calls ------------------------------------------------------------------------------------------------------------


def _called(call: ast.Call, values: Values) -> str:
    function = values.meant(call.func)
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name in {"setattr", "__setattr__"}:
        return _set_by_name(call, values, name)
    if name in {"partial", "methodcaller"} and any(map(_names_updater, call.args)):
        return _into_rows(call, values, name)
    if not isinstance(function, ast.Attribute):
        return ""
    if name in DICT_WRITERS and _is_instance_dict(function.value):
        given = call.args if name == "update" else call.args[:1]
        return _judged([*given, *_keywords(call)], values, "a status is put into an instance's dict")
    if name in UPDATERS:
        return _into_rows(call, values, name)
    if name in UPDATERS_WITH_DEFAULTS:
        return _with_defaults(call, values, name)
    if name in COLUMN_NAMES:
        return _by_columns(call, values, name) or _over_existing(function, values)
    return ""


def _set_by_name(call: ast.Call, values: Values, function: str) -> str:
    arguments = call.args
    if isinstance(call.func, ast.Attribute) and not (isinstance(call.func.value, ast.Name) and len(arguments) == 3):
        name = arguments[0] if arguments else None
    else:
        name = arguments[1] if len(arguments) > 1 else None
    if name is None or not isinstance(name, ast.Constant):
        return f"{function}() with a name that cannot be checked"
    return f"a status is set by {function}()" if is_field(name) else ""


def _into_rows(call: ast.Call, values: Values, function: str) -> str:
    # change() refuses a status itself, before any SQL, so what its callers pass on need not be followed.
    return _judged(_keywords(call), values, f"a status given to {function}()", follow=function != "change")


def _with_defaults(call: ast.Call, values: Values, function: str) -> str:
    given = [_as_dict(keyword) for keyword in call.keywords if keyword.arg not in {"defaults", "create_defaults"}]
    spread = [node for node in given if values.names(node, "defaults")]
    given += [keyword.value for keyword in call.keywords if keyword.arg == "defaults"]
    if spread:
        return f"{function}() with fields that cannot be checked"
    return _judged([*given, *call.args[:1]], values, f"a status given to {function}()")


def _by_columns(call: ast.Call, values: Values, function: str) -> str:
    keyword, position = COLUMN_NAMES[function]
    given = [each.value for each in call.keywords if each.arg == keyword]
    given += [_as_dict(each) for each in call.keywords if each.arg in {None, FIELD}]
    given += call.args[position : position + 1]
    spread = any(each.arg is None and values.names(each.value, keyword) for each in call.keywords)
    if spread:
        return f"{function}() with columns that cannot be checked"
    return _judged(given, values, f"a status given to {function}()")


def _over_existing(function: ast.Attribute, values: Values) -> str:
    """``Model(pk=1, status=…).save()`` writes every column over the row that is there."""
    row = values.meant(function.value)
    if function.attr in {"save", "asave"} and isinstance(row, ast.Call):
        given = {keyword.arg for keyword in row.keywords}
        if FIELD in given and given & {"pk", "id"}:
            return "a row with a status is saved over the one that is there"
    return ""


def _judged(given: list[ast.expr], values: Values, what: str, *, follow: bool = True) -> str:
    if any(values.names(node) for node in given):
        return what
    if follow and not all(map(values.knows, given)):
        return f"fields that cannot be checked, where this must not be: {what}"
    return ""


def _keywords(call: ast.Call) -> list[ast.expr]:
    return [_as_dict(keyword) for keyword in call.keywords]


def _as_dict(keyword: ast.keyword) -> ast.expr:
    """What a keyword gives: ``**value`` its value, ``name=value`` a dict of one key."""
    if keyword.arg is None:
        return keyword.value
    return ast.Dict(keys=[ast.Constant(keyword.arg)], values=[keyword.value])


def _names_updater(node: ast.expr) -> bool:
    named = node.attr if isinstance(node, ast.Attribute) else node.value if isinstance(node, ast.Constant) else None
    return named in UPDATERS
