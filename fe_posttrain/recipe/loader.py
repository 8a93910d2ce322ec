"""YAML as a recipe has it: safe, without tags or aliases, and what went wrong in plain words."""

import re
from typing import Any

import yaml


class Loader(yaml.SafeLoader):
    """YAML 1.2's plain values: `5e-7` is a number, `no` and `on` are text, so is `010`; no tags beyond, no aliases."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 (as PyYAML has it)
    yaml_constructors = {  # noqa: RUF012
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rsplit(":", 1)[-1] in ("null", "bool", "int", "float", "str", "seq", "map")
    }

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "an alias (`*name`): a recipe is read line by line", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} stands twice in it", node.start_mark)
        return super().construct_mapping(node, deep)


for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][\d_]*|0x[\da-fA-F]+)", list("-+0123456789")),
    ("float", r"[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*|\d[\d_]*(?=[eE]))([eE][-+]?\d+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
):
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"^(?:{_pattern})$"), _first)


def parse(text: str) -> Any:
    """The value that `text` is in a recipe. Raises yaml.YAMLError where it is none."""
    return yaml.load(text, Loader=Loader)


def fault(error: Exception, text: str) -> tuple[int, str]:
    """Line (from 1) and plain words of what PyYAML met."""
    if isinstance(error, yaml.reader.ReaderError):
        return text.count("\n", 0, error.position) + 1, f"the character number {error.character}"
    if isinstance(error, RecursionError):
        return 1, "nested too deeply"
    mark, what = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
    if "'\\t'" in what:
        what = "a tab where YAML wants spaces"
    elif context := getattr(error, "context", None):
        what = f"{context}, {what}"
        if "stream" in what and error.context_mark:  # what is never closed is wrong where it opens
            mark = error.context_mark
    return (mark.line + 1 if mark else 1), what


def refused(error: Exception) -> str:
    """What is wrong with one value, in the words of a problem."""
    what = " ".join(str(getattr(error, "problem", None) or error).split())
    if "constructor for the tag" in what:
        tag = what.rsplit("'", 2)[-2].replace("tag:yaml.org,2002:", "!!")
        return f"the tag {tag}; a recipe holds plain values and runs no code; write the value without a tag"
    return f"{what}; the value cannot be read; write a number, text, [list] or {{name: value}}"
