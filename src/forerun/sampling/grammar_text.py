"""What was asked for, in llguidance's own form. Free of torch and of the package: the server's sandbox loads this file alone."""

import json

from llguidance import grammar_from


def grammar_text(name: str, value: object) -> str:
    """llguidance's form of the field `name` of `StructuredOutputsParams`. Raises ValueError for what cannot be read."""
    if name == "json_object":
        return grammar_from("json_schema", '{"type": "object"}')
    if name == "json":
        # a schema given as text is parsed first: llguidance would paste it into its own JSON
        return grammar_from("json_schema", json.dumps(json.loads(value) if isinstance(value, str) else value))
    if name == "choice":
        texts: list[str] = list(value) if isinstance(value, (list, tuple)) else []
        return grammar_from("lark", "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts))
    if not isinstance(value, str):
        raise ValueError("no text")
    return grammar_from("regex" if name == "regex" else "grammar", value)
