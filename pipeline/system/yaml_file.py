"""One YAML mapping in a file, and the known name nearest to a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

import yaml

from pipeline.errors import SettingsError, first_line


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """`: did you mean …?`, or nothing where no candidate is close."""
    close = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return f": did you mean {close[0]}?" if close else ""


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping; YAML itself keeps the last."""

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[object, object]:
        keys = [key.value for key, _ in node.value]
        for number, (key, _) in enumerate(node.value):
            if key.value in keys[:number]:
                problem = f"{key.value} stands here twice: keep one"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        return super().construct_mapping(node, deep)


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
    except (yaml.YAMLError, UnicodeDecodeError) as err:
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
