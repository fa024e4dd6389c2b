"""The shape of the source, read from its syntax: ``scripts/house`` prints it, tests/packaging holds it."""

from __future__ import annotations

import argparse
import ast
import functools
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from compare_speed import table as speed_table

PACKAGES = ("runtime", "train", "export", "calibration")
# Rooms of runtime from the ground up: a module imports from its own room and from those before it.
ORDER = (
    "ground",
    "files",
    "model",
    "audio",
    "songs",
    "plots",
    "backends",
    "stream",
    "evaluation",
    "parity",
    "benchmark",
    "service",
    "commands",
    "doors",
)
DOORS = ("tfswa.runtime", "tfswa.runtime.__main__", "tfswa.runtime.cli", "tfswa.runtime.pytest_plugin")
SPEEDS = "docs/measured/speed-before-after.json"  # what scripts/compare_speed measured, if it did
LONG = 60  # lines of a function, from its ``def`` to its end, docstring included

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Arrow:
    """An import that is carried out: one under ``TYPE_CHECKING`` is none.

    Attributes:
        source: the module that imports.
        target: the module that is imported.
        late: whether a function does it.
    """

    source: str
    target: str
    late: bool


class House:
    """The modules below a checkout.

    Args:
        root: of the checkout.

    Attributes:
        root: of the checkout.
        files: of the four packages, by module.
        trees: their syntax.
    """

    def __init__(self, root: Path):
        self.root = root
        self.files: dict[str, Path] = {}
        for package in PACKAGES:
            for path in sorted((root / package).rglob("*.py")):
                parts = path.relative_to(root).with_suffix("").parts
                self.files[".".join(("tfswa", *parts)).removesuffix(".__init__")] = path
        self.trees = {name: ast.parse(path.read_text()) for name, path in self.files.items()}

    @functools.cache  # noqa: B019  a house lives as long as the process
    def arrows(self) -> set[Arrow]:
        """Every import of one module of ours by another."""
        return {
            Arrow(name, target, late)
            for name, tree in self.trees.items()
            for target, late in self._imports(tree, late=False)
            if target != name
        }

    def _imports(self, node: ast.AST, late: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, late) for alias in child.names if alias.name in self.files)
            elif isinstance(child, ast.ImportFrom) and child.module:
                for alias in child.names:
                    whole = f"{child.module}.{alias.name}"
                    target = whole if whole in self.files else child.module
                    if target in self.files:
                        yield target, late
            yield from self._imports(child, late or isinstance(child, Function))

    def room(self, module: str) -> str:
        """Where a module of runtime stands in ``ORDER``; a package of its own elsewhere."""
        parts = module.split(".")
        if parts[1] != "runtime":
            return parts[1]
        if module in DOORS:
            return "doors"
        return parts[2] if self.files[module].parent.name != "runtime" else "ground"

    def arrows_up(self) -> list[str]:
        """Imports in runtime of a room that stands above."""
        ranks = {room: rank for rank, room in enumerate(ORDER)}
        up = []
        for arrow in self.arrows():
            if arrow.source.startswith("tfswa.runtime") and arrow.target.startswith("tfswa.runtime"):
                one, two = self.room(arrow.source), self.room(arrow.target)
                if one != two and ranks.get(two, 0) >= ranks.get(one, len(ORDER)):
                    up.append(f"{arrow.source} -> {arrow.target}")
        return sorted(up)

    def circles(self) -> list[list[str]]:
        """Modules that reach themselves by what they import, at once or in functions."""
        graph: dict[str, set[str]] = defaultdict(set)
        for arrow in self.arrows():
            graph[arrow.source].add(arrow.target)
        reach = {name: _reached(graph, name) for name in self.files}
        found = {
            tuple(sorted(other for other in reach[name] if name in reach[other]))
            for name in self.files
            if name in reach[name]
        }
        return sorted(map(list, found))

    def functions(self) -> Iterator[tuple[str, Function]]:
        """Every function, methods and inner ones included."""
        for module, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, Function):
                    yield module, node

    def long_functions(self) -> list[str]:
        """Those of more than ``LONG`` lines."""
        return sorted(
            f"{module}.{node.name}: {node.end_lineno - node.lineno + 1} lines"
            for module, node in self.functions()
            if node.end_lineno and node.end_lineno - node.lineno + 1 > LONG
        )

    def twins(self) -> dict[str, list[str]]:
        """Public classes and functions that several modules define; a command's own function is no such."""
        places: dict[str, list[str]] = defaultdict(list)
        for module, tree in self.trees.items():
            for node in tree.body:
                if not isinstance(node, ast.ClassDef | Function) or node.name.startswith("_"):
                    continue
                if not any(map(_is_command, node.decorator_list)):
                    places[node.name].append(module)
        return {name: modules for name, modules in sorted(places.items()) if len(modules) > 1}

    def options(self) -> dict[str, int]:
        """How many options each command has."""
        shared = self.trees.get("tfswa.runtime.commands.options")
        sizes = (
            {node.name: _size(node) for node in shared.body if isinstance(node, Function)} if shared else {}
        )
        counts: dict[str, int] = {}
        for module, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, Function) and any(map(_is_command, node.decorator_list)):
                    names = [ast.unparse(getattr(d, "func", d)) for d in node.decorator_list]
                    place = module.removeprefix("tfswa.").replace("runtime.commands.", "")
                    counts[f"{place.removesuffix('.cli')} {node.name}"] = sum(
                        1 if name == "click.option" else sizes.get(name.partition(".")[2], 1)
                        for name in names
                        if name == "click.option" or name.startswith("options.")
                    )
        return counts


def _reached(graph: Mapping[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for target in graph.get(waiting.pop(), ()):
            if target not in found:
                found.add(target)
                waiting.append(target)
    return found


def _is_command(decorator: ast.expr) -> bool:
    name = ast.unparse(getattr(decorator, "func", decorator))
    return name.endswith((".command", ".group"))


def _size(node: Function) -> int:
    """Options that a shared decorator of ``commands/options.py`` adds."""
    loops = [inner.iter for inner in ast.walk(node) if isinstance(inner, ast.For)]
    return sum(len(loop.elts) for loop in loops if isinstance(loop, ast.Tuple)) or 1


def table(houses: Mapping[str, House]) -> Iterator[str]:
    """Markdown, a column for each house."""
    yield f"| | {' | '.join(houses)} |"
    yield f"| --- |{' ---: |' * len(houses)}"

    def row(name: str, value: Callable[[House], object]) -> str:
        return f"| {name} | {' | '.join(str(value(house)) for house in houses.values())} |"

    rooms = {house.room(module): None for house in houses.values() for module in house.files}
    for room in sorted(rooms, key=lambda room: (*ORDER, *PACKAGES).index(room)):
        name = room if room in PACKAGES else f"runtime, {room}"
        yield row(f"{name}: files, lines", lambda house, room=room: _weight(house, room))  # type: ignore[misc]
    yield row("files, lines in all", _weight)
    yield row("files over 300 lines", _large_files)
    yield row("arrows between modules of runtime", _inner_arrows)
    yield row("arrows between rooms and packages", _between_rooms)
    yield row("arrows up between rooms", lambda house: len(house.arrows_up()))
    yield row("circles of imports, those in functions included", lambda house: len(house.circles()))
    yield row("public names that two modules define", lambda house: len(house.twins()))
    yield row(f"functions over {LONG} lines", lambda house: len(house.long_functions()))
    yield row("lines of README.md", lambda house: len((house.root / "README.md").read_text().splitlines()))
    commands = {name: None for house in houses.values() for name in house.options()}
    for command in sorted(commands):
        yield row(f"options: {command}", lambda house, c=command: house.options().get(c, ""))  # type: ignore[misc]


def _weight(house: House, room: str | None = None) -> str:
    chosen = [path for module, path in house.files.items() if room in (None, house.room(module))]
    return f"{len(chosen)}, {sum(path.read_text().count(chr(10)) for path in chosen)}"


def _large_files(house: House) -> int:
    return sum(path.read_text().count("\n") > 300 for path in house.files.values())


def _inner_arrows(house: House) -> int:
    pairs = {(a.source, a.target) for a in house.arrows()}
    return sum(one.startswith("tfswa.runtime.") and two.startswith("tfswa.runtime.") for one, two in pairs)


def _between_rooms(house: House) -> int:
    """Pairs of which one imports from the other, however often."""
    pairs = {(house.room(arrow.source), house.room(arrow.target)) for arrow in house.arrows()}
    return sum(one != two for one, two in pairs)


def main() -> None:
    """Print the table, then what it counts."""
    parser = argparse.ArgumentParser(prog="scripts/house", description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, help="checkouts, a column each; default: this one")
    roots = parser.parse_args().folders or [Path(__file__).resolve().parents[1]]
    for root in roots:
        if not (root / "README.md").exists():
            parser.error(f"{root} is no checkout of tfx: it has no README.md")
    names = Counter(root.resolve().name for root in roots)
    houses = {
        root.resolve().name if names[root.resolve().name] == 1 else str(root): House(root) for root in roots
    }
    print(
        "# The house\n\nMade by `scripts/house`. Functions count from `def` to end, docstring included;\n"
        "an import under `TYPE_CHECKING` is no arrow; a command's function is no second meaning.\n"
        "Arrows between rooms are pairs of rooms: more rooms, more pairs.\n"
    )
    print("\n".join(table(houses)))
    house = list(houses.values())[-1]
    for title, lines in (
        ("Arrows up", house.arrows_up()),
        ("Circles", [", ".join(circle) for circle in house.circles()]),
        ("Names with two meanings", [f"`{name}`: {', '.join(m)}" for name, m in house.twins().items()]),
        (f"Functions over {LONG} lines", house.long_functions()),
    ):
        print(f"\n## {title}\n")
        print("\n".join(f"- {line}" for line in lines) or "None.")
    if (speeds := house.root / SPEEDS).exists():
        measured = json.loads(speeds.read_text())
        print(
            f"\n## Speed of separate\n\nMeasured by `scripts/compare_speed` on {measured['date'][:10]}, "
            f"--backend {measured['backend']} on {measured['cores']} cores, one thread.\n"
        )
        print("\n".join(speed_table(measured["rows"])))


if __name__ == "__main__":
    main()
