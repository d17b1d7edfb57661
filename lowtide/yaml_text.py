"""Read untrusted YAML: plain values, of bounded depth and size, no key twice."""

from __future__ import annotations

from collections.abc import Hashable

import yaml
from yaml.constructor import ConstructorError

from .errors import InputError, shown

DEPTH = 20
"""Most levels of nesting."""
NODES = 100_000
"""Most values, each alias counted as all that it stands for."""
PLAIN = ("null", "bool", "int", "float", "str", "seq", "map", "merge")
OPENING = (yaml.SequenceStartEvent, yaml.MappingStartEvent)
CLOSING = (yaml.SequenceEndEvent, yaml.MappingEndEvent)


def parse_yaml(text: str, path: str) -> object:
    """Read a YAML document.

    Args:
        text: The document.
        path: Where it is from, for the message.

    Returns:
        Its content: mappings, lists, texts, numbers, truths and None.

    Raises:
        InputError: It is no YAML, is too deep or too large, or has a key twice.
    """
    try:
        _measure(text, path)
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as e:
        raise InputError(f"{path} is no YAML: {_reason(e)}") from e
    except InputError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as e:
        raise InputError(f"{path} is no YAML: a value is not what its tag says") from e


def _measure(text: str, path: str) -> None:
    """Refuse a document that would be large or endless once its aliases are followed."""
    total, open_, known = 0, [], {}
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, OPENING):
            open_.append((event.anchor, total))
            if len(open_) > DEPTH:
                raise InputError(f"{path} is nested more than {DEPTH} levels deep")
        elif isinstance(event, CLOSING):
            anchor, before = open_.pop()
            known[anchor] = total - before
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_):
                raise InputError(f"{path}: *{event.anchor} refers to a node that contains it")
            total += known.get(event.anchor, 0)
        elif isinstance(event, yaml.ScalarEvent):
            known[event.anchor] = 1
        total += 1
        if total > NODES:
            raise InputError(f"{path} holds more than {NODES} values")


def _reason(error: yaml.YAMLError) -> str:
    said = getattr(error, "problem", None) or str(error).splitlines()[0]
    mark = getattr(error, "problem_mark", None)
    return f"{said}, line {mark.line + 1}" if mark else str(said)


class _Loader(yaml.SafeLoader):
    """Plain values only."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        """Make a value, unless its tag stands for anything but plain data.

        Args:
            node: Says which.
            deep: Whether what it holds is made at once.

        Returns:
            The value.

        Raises:
            ConstructorError: The tag stands for something else.
        """
        if node.tag.removeprefix("tag:yaml.org,2002:") not in PLAIN:
            word = node.tag.replace("tag:yaml.org,2002:", "!!")
            kind = "a date, put it in quotes" if word == "!!timestamp" else f"a {word}"
            raise ConstructorError(
                None, None, f"a plain value was expected and not {kind}", node.start_mark
            )
        return super().construct_object(node, deep=deep)

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Hashable, object]:
        """Make a mapping, unless a key stands in it twice.

        Args:
            node: Its keys and values.
            deep: Whether what it holds is made at once.

        Returns:
            The mapping.

        Raises:
            ConstructorError: A key does.
        """
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
                continue
            if (key.tag, key.value) in seen:
                said = f"the key {shown(key.value)} is given twice"
                raise ConstructorError(None, None, said, key.start_mark)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep=deep)
