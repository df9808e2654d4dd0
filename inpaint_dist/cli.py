"""Config dataclasses → flags and --help. The only file that knows the flag library."""

import ast
import dataclasses
import inspect
import os
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, TypeVar, cast, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from inpaint_dist.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE, Preempted, UserError
from inpaint_dist.pulse import PULSE

Config = TypeVar("Config")

PATIENCE = 5.0
"""Seconds that the other processes of a machine give the first one to print what all of them met."""


def parse(
    default: Config | type[Config],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    positional: Sequence[str] = (),
    sections: Sequence[str] = (),
    fixed: Sequence[str] = (),
) -> Config:
    """Read a config dataclass from command-line flags.

    Args:
        default: the dataclass, or an instance of it whose values are the flags' defaults.
        argv: the words after the program's name.
        prog: how the program is called, for --help.
        description: what it does, for --help.
        positional: fields given by place instead of by flag.
        sections: nested configs whose name may be left out: with `data` among them, `--batch-size` and
            `--data.batch-size` are the same flag.
        fixed: fields that are no flags and keep their default.

    Raises:
        SystemExit: after --help (0), or with a message on flags that are wrong (2).
    """
    is_type = isinstance(default, type)
    root = cast("type[Config]", default if is_type else type(default))
    prefixes = tuple(f"--{name}." for name in sections)
    words = [_without_section(word, prefixes) for word in argv]
    try:
        return tyro.cli(
            root,
            default=tyro.MISSING if is_type else default,
            args=words,
            config=(tyro.conf.AvoidSubcommands,),
            prog=prog,
            description=description,
            registry=_registry(root, frozenset(positional), frozenset(sections), frozenset(fixed)),
            console_outputs=speaks(),
        )
    except UserError as error:  # a config's __post_init__ refused the values
        tell(error)
        raise SystemExit(EXIT_USAGE) from None
    except SystemExit as end:  # after --help, or after what the flag library had to say
        if end.code and not speaks():
            time.sleep(PATIENCE)
        raise


def run(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a verb's `main`; turn the user's errors into one message and an exit code.

    A traceback is printed only for our own bugs, or where `--debug` is among the flags (of any verb or tool).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    code = EXIT_FAILURE
    try:
        code = _run(main, words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else EXIT_FAILURE
        raise
    finally:
        PULSE.end(code)
    return code


def _run(main: Callable[[Sequence[str]], int | None], words: Sequence[str]) -> int:
    debug = "--debug" in words
    try:
        return main([word for word in words if word != "--debug"]) or 0
    except UserError as error:
        if debug:
            raise
        tell(error)
        return error.exit_code
    except Preempted as end:
        if not end.by_all and speaks():
            sys.stderr.write(f"stopped: {end}\n")
        return end.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE


def speaks() -> bool:
    """Whether this process speaks for its machine: it is alone there, or the first of a distributed run."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def tell(error: UserError) -> None:
    """Print an error: once a machine where all processes meet it alike, else with the rank that met it.

    The first process speaks for all. A launcher ends the others as soon as one has failed, so those wait for it to
    have spoken; whoever is still there after that speaks for itself.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and error.on_every_rank and not speaks():
        time.sleep(PATIENCE)
    rank = f" on rank {os.environ.get('RANK', '?')}" if several and not (error.on_every_rank and speaks()) else ""
    sys.stderr.write(f"error{rank}: {error}\n")
    sys.stderr.flush()


def _without_section(word: str, prefixes: tuple[str, ...]) -> str:
    for prefix in prefixes:
        if word.startswith(prefix):
            return f"--{word[len(prefix) :]}"
    return word


def _registry(
    root: type, positional: frozenset[str], sections: frozenset[str], fixed: frozenset[str]
) -> ConstructorRegistry:
    registry = ConstructorRegistry()

    @registry.struct_rule
    def dataclass_rule(info: StructTypeInfo) -> StructConstructorSpec | None:  # pyright: ignore[reportUnusedFunction]
        if not dataclasses.is_dataclass(info.type):
            return None
        owner = cast("type[Any]", info.type)
        hints, docs = get_type_hints(owner, include_extras=True), field_docs(owner)
        fields: list[StructFieldSpec] = []
        for field in dataclasses.fields(owner):
            hint: Any = hints[field.name]
            if owner is root and field.name in sections:
                hint = Annotated[hint, tyro.conf.arg(name="")]
            elif owner is root and field.name in positional:
                hint = tyro.conf.Positional[hint]
            elif owner is root and field.name in fixed:
                hint = tyro.conf.SuppressFixed[tyro.conf.Fixed[hint]]
            fields.append(StructFieldSpec(field.name, hint, _default(field, info.default), docs.get(field.name)))
        return StructConstructorSpec(instantiate=owner, fields=tuple(fields))

    return registry


def _default(field: "dataclasses.Field[Any]", parent: Any) -> Any:
    if hasattr(parent, field.name):
        return getattr(parent, field.name)
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return tyro.MISSING


@cache
def field_docs(owner: type) -> dict[str, str]:
    """The docstring below each attribute of a dataclass, its bases included: field name → text."""
    docs: dict[str, str] = {}
    for cls in reversed(owner.__mro__[:-1]):
        body = cast("ast.ClassDef", ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]).body
        for statement, below in pairwise(body):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            ):
                docs[statement.target.id] = " ".join(below.value.value.split())
    return docs
