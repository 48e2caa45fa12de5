"""One YAML mapping in a file, and the known name nearest to a misspelt one.

In: a path. Out: plain values, of which no tag builds anything and no alias makes more than
`_MOST_VALUES`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

import yaml

from pipeline.errors import SettingsError, first_line


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """`: did you mean …?`, or nothing where no candidate is close."""
    close = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return f": did you mean {close[0]}?" if close else ""


_MOST_VALUES = 10_000
"""Of a file, aliases written out: nine lines can hold nine to the power of nine."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which YAML itself keeps the last.

    Refuses aliases that hold themselves or come to too many values, too. As in YAML 1.2, `yes`,
    `no`, `on` and `off` are words: a class, a column or a model may be called so.
    """

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            self._count(node, {})
        return node

    def _count(self, node: yaml.Node, counted: dict[int, int]) -> int:
        """The values below a node, each alias written out; 0 while the node is being counted."""
        if counted.setdefault(id(node), 0):
            return counted[id(node)]
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        total = 1
        for child in children:
            if counted.get(id(child)) == 0:
                self._refuse(child, "an alias stands inside what it names: write the values out")
            total += self._count(child, counted)
            if total > _MOST_VALUES:
                problem = f"aliases come to more than {_MOST_VALUES} values: write fewer"
                self._refuse(node, problem)
        counted[id(node)] = total
        return total

    @staticmethod
    def _refuse(node: yaml.Node, problem: str) -> None:
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[object, object]:
        keys = [key.value for key, _ in node.value]
        for number, (key, _) in enumerate(node.value):
            if key.value in keys[:number]:
                self._refuse(key, f"{key.value} stands here twice: keep one")
        return super().construct_mapping(node, deep)


_BOOL, _TRUE_OR_FALSE = (
    "tag:yaml.org,2002:bool",
    re.compile("(?:true|True|TRUE|false|False|FALSE)$"),
)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, _TRUE_OR_FALSE, list("tTfF"))


def read_yaml(path: Path, source: str) -> dict[str, object]:
    """The mapping in a YAML file.

    Raises:
        SettingsError: no such file, not YAML, a key that stands twice, or not a mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as err:
        raise SettingsError(
            f"{source}: cannot read {path.absolute()} ({err.strerror}): pass the path of a YAML "
            "file"
        ) from None
    except RecursionError:
        raise SettingsError(f"{source}: {path} is nested too deeply: mend the file") from None
    except (yaml.YAMLError, ValueError) as err:  # of letters, dates and numbers that are none
        mark = getattr(err, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(err, "problem", None) or first_line(err)
        raise SettingsError(
            f"{source}: {path}{line} is not valid YAML ({problem}): mend the file"
        ) from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(
            f"{source}: {path} holds a {type(content).__name__}: write one `name: value` a line"
        )
    return {str(key): value for key, value in content.items()}


def key_lines(path: Path) -> dict[str, int]:
    """The line of each key of a mapping that `read_yaml` can read, from 1."""
    mapping = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    assert isinstance(mapping, yaml.MappingNode)
    return {str(key.value): key.start_mark.line + 1 for key, _ in mapping.value}
