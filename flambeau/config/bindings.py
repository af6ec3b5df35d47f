"""Several settings in one text: `optimizer.lr=1e-3; trainer.epochs=5`."""

from __future__ import annotations


def split_bindings(text: str) -> list[str]:
    """The settings of a text in which semicolons part them.

    A semicolon in quotes parts nothing, where a value begins with a quote or a bracket, so that it is read as YAML.

    >>> split_bindings("a.b=1; c.d='x;y';")
    ['a.b=1', "c.d='x;y'"]
    """
    settings, current = [], ""
    quote, is_escaped = "", False
    for char in text:
        if quote:
            current += char
            if is_escaped:
                is_escaped = False
            elif char == "\\" and quote == '"':
                is_escaped = True
            elif char == quote:
                quote = ""
        elif char == ";":
            settings.append(current.strip())
            current = ""
        else:
            current += char
            value = current.partition("=")[2].lstrip()
            if char in "\"'" and value[:1] in tuple("\"'[{"):
                quote = char
    settings.append(current.strip())
    return [setting for setting in settings if setting]
