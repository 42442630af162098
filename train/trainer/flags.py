"""Parsing the command line; a flag that cannot be parsed is answered in one line. `config` checks the values."""

import contextlib
import difflib
import io
import re
import typing

import tyro

from trainer.config import Config, UsageError, flag

Flags = typing.TypeVar("Flags")
_BOX = re.compile("[╭╮╰╯│─]|-{4,}")


def parse(arguments: list[str]) -> Config:
    """The Config of these arguments; UsageError, or SystemExit after `--help`."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(Config, prog="train/main.py", args=arguments)
    except SystemExit as leaving:
        if not leaving.code:
            raise
        raise UsageError(_explain(arguments) or " ".join(complaint.getvalue().split())) from None


def parse_command(kind: type[Flags], program: str, arguments: list[str]) -> Flags:
    """The flags of another command, a dataclass; UsageError, or SystemExit after `--help`."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, prog=program, args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    except SystemExit as leaving:
        if not leaving.code:
            raise
        words = " ".join(_BOX.sub(" ", complaint.getvalue().split("\n", 1)[-1]).split())  # a box, without its title
        words = re.split(" (?:Got errors|Argument helptext|For full helptext)", words)[0]
        words = re.sub(
            r"no type matching {None}\|(\w+) could be instantiated from \['(.*)'\]", r"'\2' is not \1", words
        )
        raise UsageError(f"{words} --help says more.") from None


def value(field: str, text: str) -> typing.Any:
    """The text as a value of that field of Config; UsageError says what it must be."""
    kind = _kind(typing.get_type_hints(Config)[field])
    if not _readable(text, kind):
        raise UsageError(f"{field} is {text!r}; it must be {_wanted(kind)}.")
    return text if _choices(kind) else kind(text)


def _explain(arguments: list[str]) -> str | None:
    """What is wrong with the first invalid argument; tyro's own answer is a box of many lines."""
    types = {flag(name): kind for name, kind in typing.get_type_hints(Config).items()}
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    while words:
        name = words.pop(0).replace("_", "-")
        if name not in types:
            near = difflib.get_close_matches(name, types, 1, 0.75)
            hint = f"; did you mean {near[0]}?" if near else "; see --help."
            return f"there is no flag {name}{hint}" if name.startswith("--") else f"{name} belongs to no flag{hint}"
        if types[name] is bool:
            if words and not words[0].startswith("--"):
                return f"{name} is {words[0]}; it takes no value."
            continue
        if not words or words[0].startswith("--"):
            return f"{name} needs a value: {_wanted(types[name])}."
        if not _readable(value := words.pop(0), types[name]):
            return f"{name} is {value}; it must be {_wanted(types[name])}."
    return None


def _kind(annotation: typing.Any) -> typing.Any:
    """The type or the Literal in `X | None`."""
    alternatives = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
    return annotation if _choices(annotation) or not alternatives else alternatives[0]


def _choices(annotation: typing.Any) -> tuple[str, ...]:
    return typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()


def _wanted(annotation: typing.Any) -> str:
    kind = _kind(annotation)
    if choices := _choices(kind):
        return f"one of {', '.join(choices)}"
    return {int: "a whole number", float: "a number", str: "a text"}[kind]


def _readable(value: str, annotation: typing.Any) -> bool:
    kind = _kind(annotation)
    if choices := _choices(kind):
        return value in choices
    with contextlib.suppress(ValueError):
        kind(value)
        return True
    return False
