"""Finds code that changes a status past ``Lifecycle.transition()``: by reading the syntax tree, not by searching text.

What may stay: reading and comparing a status, filtering by it, a new row with its first status, and SQL that names a
status in a condition. Where a value cannot be followed (``setattr`` with a computed name, ``update(**unknown)``), that
is reported too: code that nobody can check does not belong there.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FIELD = "status"
# Calls that write their keywords into existing rows.
UPDATERS = frozenset({"update", "aupdate", "change"})
UPDATERS_WITH_DEFAULTS = frozenset({"update_or_create", "aupdate_or_create"})
BULK_UPDATERS = frozenset({"bulk_update", "abulk_update"})
SAVERS = frozenset({"save", "asave", "bulk_create", "abulk_create", "save_base"})


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
    found = {
        Violation(path, line, what)
        for scope in _scopes(tree)
        for line, what in _check_scope(scope, _Values(scope, tree), docstrings)
    }
    return sorted(found, key=lambda violation: (violation.line, violation.what))


def _scopes(tree: ast.Module) -> Iterator[ast.AST]:
    yield tree
    yield from (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


class _Values:
    """What the names of one function hold, as far as that is written down in it."""

    def __init__(self, scope: ast.AST, module: ast.Module) -> None:
        self.assigned: dict[str, list[ast.expr]] = {}
        self.module_names = {
            target.id
            for statement in module.body
            if isinstance(statement, (ast.Assign, ast.AnnAssign))
            for target in (statement.targets if isinstance(statement, ast.Assign) else [statement.target])
            if isinstance(target, ast.Name)
        }
        self.filled_with_field: set[str] = set()
        for node in ast.walk(scope):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    self._note(target, node.value)
            elif isinstance(node, (ast.AnnAssign, ast.NamedExpr, ast.AugAssign)) and node.value is not None:
                self._note(node.target, node.value)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                self._note_call(node.func, node)

    def _note(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self.assigned.setdefault(target.id, []).append(value)
        elif isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name) and _is_field(target.slice):
            self.filled_with_field.add(target.value.id)

    def _note_call(self, func: ast.Attribute, call: ast.Call) -> None:
        holder = func.value.id if isinstance(func.value, ast.Name) else ""
        names = any(map(_is_field, call.args)) or any(keyword.arg == FIELD for keyword in call.keywords)
        if func.attr in {"append", "add", "setdefault", "update"} and names:
            self.filled_with_field.add(holder)

    def knows(self, node: ast.expr) -> bool:
        """Whether it is written here, or in this module, what the value holds."""
        return not isinstance(node, ast.Name) or node.id in self.assigned or node.id in self.module_names

    def may_name_field(self, node: ast.expr, depth: int = 0) -> bool:
        """Whether a list, set, tuple or dict, or a name for one, has our field in it."""
        if depth > 5:
            return False
        match node:
            case ast.Constant():
                return _is_field(node)
            case ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.Set(elts=parts):
                return any(self.may_name_field(part, depth + 1) for part in parts)
            case ast.Starred(value=inner):
                return self.may_name_field(inner, depth + 1)
            case ast.Dict(keys=keys, values=values):
                named = any(key is not None and _is_field(key) for key in keys)
                spread = [value for key, value in zip(keys, values, strict=True) if key is None]
                return named or any(self.may_name_field(value, depth + 1) for value in spread)
            case ast.BinOp(left=left, right=right):
                return self.may_name_field(left, depth + 1) or self.may_name_field(right, depth + 1)
            case ast.IfExp(body=body, orelse=orelse):
                return self.may_name_field(body, depth + 1) or self.may_name_field(orelse, depth + 1)
            case ast.Call(args=args, keywords=keywords):
                named = any(keyword.arg == FIELD for keyword in keywords)
                return named or any(self.may_name_field(arg, depth + 1) for arg in args)
            case ast.Name(id=name):
                values = self.assigned.get(name, [])
                return name in self.filled_with_field or any(self.may_name_field(v, depth + 1) for v in values)
        return False


def _check_scope(scope: ast.AST, values: _Values, docstrings: set[int]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(scope):
        for target in _targets(node):
            if what := _assigned(target):
                yield target.lineno, what
        if isinstance(node, ast.Call) and (what := _called(node, values)):
            yield node.lineno, what
        if isinstance(node, (ast.Constant, ast.JoinedStr)) and id(node) not in docstrings and _sql_sets_field(node):
            yield node.lineno, "SQL that sets a status"


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


def _assigned(target: ast.expr) -> str:
    match target:
        case ast.Attribute(attr=attr, ctx=ast.Store() | ast.Del()) if attr == FIELD:
            return "a status is assigned"
        case ast.Subscript(value=holder, slice=key, ctx=ast.Store() | ast.Del()) if _is_field(key):
            if isinstance(holder, ast.Attribute) and holder.attr == "__dict__":
                return "a status is put into __dict__"
            if isinstance(holder, ast.Call) and isinstance(holder.func, ast.Name) and holder.func.id == "vars":
                return "a status is put into vars()"
    return ""


def _called(call: ast.Call, values: _Values) -> str:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in {"setattr", "__setattr__"}:
        return _set_by_name(call, name)
    if name in UPDATERS and isinstance(call.func, ast.Attribute):
        return _keywords_name_field(call, values, name)
    if name in UPDATERS_WITH_DEFAULTS and _any_argument(call, values, keyword="defaults", position=0):
        return f"a status in the defaults of {name}()"
    if name in BULK_UPDATERS and _any_argument(call, values, keyword="fields", position=1):
        return f"a status in {name}()"
    if name in SAVERS and isinstance(call.func, ast.Attribute):
        if any(keyword.arg == FIELD for keyword in call.keywords):
            return f"a status given to {name}()"
        if _any_argument(call, values, keyword="update_fields", position=99):
            return f"a status in update_fields of {name}()"
    if name in {"partial", "methodcaller"} and any(map(_names_updater, call.args)):
        return _keywords_name_field(call, values, name)
    return ""


def _set_by_name(call: ast.Call, function: str) -> str:
    arguments = call.args
    if isinstance(call.func, ast.Attribute) and not (isinstance(call.func.value, ast.Name) and len(arguments) == 3):
        name = arguments[0] if arguments else None
    else:
        name = arguments[1] if len(arguments) > 1 else None
    if name is None or not isinstance(name, ast.Constant):
        return f"{function}() with a name that cannot be checked"
    return f"a status is set by {function}()" if _is_field(name) else ""


def _keywords_name_field(call: ast.Call, values: _Values, function: str) -> str:
    for keyword in call.keywords:
        if keyword.arg == FIELD or (keyword.arg is None and values.may_name_field(keyword.value)):
            return f"a status given to {function}()"
        if keyword.arg is None and function in {"update", "aupdate"} and not values.knows(keyword.value):
            return f"{function}() with fields that cannot be checked"
    return ""


def _any_argument(call: ast.Call, values: _Values, *, keyword: str, position: int) -> bool:
    given = [each.value for each in call.keywords if each.arg == keyword]
    given += [each.value for each in call.keywords if each.arg is None and _has_key(each.value, keyword)]
    given += call.args[position : position + 1]
    return any(values.may_name_field(value) for value in given)


def _has_key(node: ast.expr, key: str) -> bool:
    """``f(**{"defaults": {...}})``."""
    return isinstance(node, ast.Dict) and any(isinstance(k, ast.Constant) and k.value == key for k in node.keys)


def _names_updater(node: ast.expr) -> bool:
    named = node.attr if isinstance(node, ast.Attribute) else node.value if isinstance(node, ast.Constant) else None
    return named in UPDATERS


def _is_field(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value == FIELD


# --- SQL --------------------------------------------------------------------------------------------------------------

# The assignments of an UPDATE: between SET and what may follow them.
ASSIGNMENTS = re.compile(r"\bSET\b(.*?)(?=\b(?:WHERE|FROM|RETURNING)\b|;|\Z)", re.IGNORECASE | re.DOTALL)
COLUMN_LIST = re.compile(r"^\s*(?:ROW\s*)?\(([^)]*)\)\s*=")
COLUMN = re.compile(rf'(?:\A|,)\s*(?:[A-Za-z_]\w*\.)?"?{FIELD}"?\s*=(?!=)', re.IGNORECASE)


def _sql_sets_field(node: ast.Constant | ast.JoinedStr) -> bool:
    if isinstance(node, ast.JoinedStr):
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else " ? " for part in node.values)
    elif isinstance(node.value, str):
        text = node.value
    else:
        return False
    text = re.sub(r"--[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL)
    for match in ASSIGNMENTS.finditer(_without_inner_parentheses(text)):
        if COLUMN.search(match[1]):
            return True
    for match in re.finditer(r"\bSET\b(.*)", text, re.IGNORECASE | re.DOTALL):
        listed = COLUMN_LIST.match(match[1])
        if listed and FIELD in re.findall(r"\w+", listed[1].lower()):
            return True
    return False


def _without_inner_parentheses(text: str) -> str:
    """Subqueries and calls blanked, so that their WHERE and their commas are not taken for the statement's."""
    before = ""
    while before != text:
        before, text = text, re.sub(r"\([^()]*\)", " ? ", text)
    return text
