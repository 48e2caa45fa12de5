"""A person's own network: a function `package.module:function` that returns it.

In: its name. Out: the function, and the source files that the served model needs to build the
network again. The module is found as Python finds modules, or in the folder where the command
runs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextlib import suppress
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import packages_distributions
from modulefinder import ModuleFinder
from os.path import normpath
from pathlib import Path
from typing import Any

from pipeline.errors import SettingsError, first_line
from pipeline.system.disk.first_read import check_unchanged, first_read


def is_factory(name: str) -> bool:
    """Whether the name of a network is that of a function, `package.module:function`."""
    return ":" in name and not name.startswith("timm:")


def factory_of(name: str) -> Callable[..., Any]:
    """The function of that name.

    Raises:
        SettingsError: no such module or function, or the module cannot be imported.
    """
    module_name, _, function = name.partition(":")
    if not re.fullmatch(r"[\w.]+", module_name) or not function.isidentifier():
        raise SettingsError(
            f"backbone={name}: write a factory as package.module:function, such as "
            "nets.small:build"
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    is_new = module_name not in sys.modules
    try:
        module = import_module(module_name)
    except (Exception, SystemExit) as err:  # noqa: BLE001 - the person's module may raise anything
        is_missing = isinstance(err, ModuleNotFoundError) and f"{module_name}.".startswith(
            f"{err.name}."
        )
        todo = f"put it on Python's path or into {here}" if is_missing else "mend that module"
        if is_missing and module_name.endswith(".py"):
            todo = f"write {module_name.removesuffix('.py')}:{function}"
        raise SettingsError(
            f"backbone={name}: {module_name} cannot be imported "
            f"({type(err).__name__}: {first_line(err)}): {todo}"
        ) from None
    found = getattr(module, function, None)
    if not callable(found):
        functions = [n for n, f in vars(module).items() if callable(f) and n[0] != "_"]
        close = get_close_matches(function, functions, n=1)
        todo = f"did you mean {close[0]}?" if close else "name a function of that module"
        raise SettingsError(f"backbone={name}: {module_name} has no function {function}: {todo}")
    if is_new:
        sources_of(name)  # before anybody edits them
    return found  # type: ignore[no-any-return]


def distribution_of(name: str) -> str | None:
    """The installed distribution that a factory comes from; None: files of the person's own."""
    return distribution_with(name.partition(":")[0].partition(".")[0])


@cache
def distribution_with(package: str) -> str | None:
    """The installed distribution of a package.

    Looks into what every installed distribution says of itself: a quarter of a second.
    """
    found = packages_distributions().get(package)
    return found[0] if found else None


def sources_of(name: str) -> dict[str, bytes]:
    """A factory's Python files by their path, as they were when this process first looked.

    Python keeps the code that it imported first, whatever is written into the files later.
    """
    _loaded_at_first(name)
    return {below: first_read(path) for below, path in _files_of(name).items()}


def check_sources(name: str) -> None:
    """Refuse a factory whose files were edited: this process would compute by their earlier code.

    Files that the process has not loaded may be edited, and those that others than the factory
    loaded before.

    Raises:
        SettingsError: names the files.
    """
    if files := _files_of(name):
        earlier = _loaded_at_first(name) - {normpath(path) for path in _imported_by(name)}
        watched = _loaded() - earlier
        code = [path for path in files.values() if normpath(path) in watched]
        check_unchanged(code, f"backbone={name}: its source files have")


def _loaded() -> frozenset[str]:
    """Paths of the files of all modules, as text: to make thousands of `Path` takes long."""
    files = (getattr(module, "__file__", None) for module in [*sys.modules.values()])
    return frozenset(normpath(file) for file in files if file)


@cache
def _loaded_at_first(name: str) -> frozenset[str]:
    return _loaded()


@cache
def _imported_by(name: str) -> frozenset[Path]:
    """A factory's module, and the person's own files that its code imports, as it stands there."""
    module_name = name.partition(":")[0]
    own = getattr(import_module(module_name), "__file__", None)
    found = {Path(own)} if own and own.endswith(".py") else set()
    if not distribution_of(name):
        top = import_module(module_name.partition(".")[0])
        places = [*getattr(top, "__path__", [])] or [str(top.__file__)]
        finder = _Finder([str(Path(place).parent) for place in places])
        with suppress(ImportError):  # of what Python finds by other means
            finder.import_hook(module_name)
        files = (getattr(each, "__file__", None) for each in finder.modules.values())
        found |= {Path(file) for file in files if file}
    return frozenset(found)


@cache
def _files_of(name: str) -> dict[str, Path]:
    """A factory's Python files, by their path below the folder that has to be on Python's path.

    All files of the factory's package, or its one module, and what these import from the same
    folder; empty for other networks. A package may be a folder without `__init__.py`, which Python
    puts together from all places of that name.
    """
    if not is_factory(name):
        return {}
    module = import_module(name.partition(":")[0].partition(".")[0])
    assert module.__file__ is not None or module.__path__
    if hasattr(module, "__path__"):
        folders = [Path(folder) for folder in module.__path__]
        found = {path for folder in folders for path in folder.rglob("*.py")}
        roots = [folder.parent for folder in folders]
    else:
        found = {Path(str(module.__file__))}
        roots = [Path(str(module.__file__)).parent]
    found |= _imported_by(name)
    below: dict[str, Path] = {}
    for root in roots:  # of two files of one name Python takes that of the first folder
        for path in sorted(each for each in found if each.is_relative_to(root)):
            below.setdefault(str(path.relative_to(root)), path)
    return below


class _Finder(ModuleFinder):
    """Finds what is in folders without `__init__.py`, too."""

    def import_module(self, partname: str, fqname: str, parent: Any) -> Any:  # noqa: ANN401
        """The module of that name, or a folder as a package without a file; None: neither."""
        with suppress(AttributeError):  # of such a folder
            if found := super().import_module(partname, fqname, parent):
                return found
        places = parent.__path__ or [] if parent else self.path
        folders = [path for place in places if (path := Path(place) / partname).is_dir()]
        if not folders:
            return None
        package: Any = self.add_module(fqname)
        package.__path__ = [str(path) for path in folders]
        if parent:
            setattr(parent, partname, package)
        return package
