"""Things to try in the chat, chosen for the model that ships with quire; any other model can be asked them too."""

from __future__ import annotations

from dataclasses import dataclass

PERSON = """\
{
  "type": "object",
  "properties": {
    "name": {"type": "string"},
    "city": {"type": "string"},
    "job": {"type": "string"}
  },
  "required": ["name", "city", "job"],
  "additionalProperties": false
}"""

WEATHER = """\
[
  {
    "type": "function",
    "function": {
      "name": "get_weather",
      "description": "Get the weather in a city.",
      "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"]
      }
    }
  }
]"""

GRAMMAR = """\
start: number " + " number " = " number
number: /[0-9]{1,4}/"""


@dataclass(frozen=True)
class Example:
    """What a click fills in. ``form`` and ``definition`` say what form the answer must have, ``tools`` what to call."""

    title: str
    prompt: str
    temperature: float = 0.0
    form: str = "any text"
    definition: str = ""
    tools: str = ""


EXAMPLES = (
    Example("Ask about quire", "Why is prefix caching useful?"),
    Example("Arithmetic", "What is 417 + 268?"),
    Example("A story", "Tell me a story about a fox.", temperature=0.8),
    Example(
        "JSON by a schema",
        "Extract the name, city and job as JSON: Emil is a doctor in Sydney.",
        form="JSON by a schema",
        definition=PERSON,
    ),
    Example("One of a list", "Is 417 more than 268?", form="one of a list", definition="yes\nno\nI don't know"),
    Example("A grammar", "What is 58 + 367?", form="grammar (Lark)", definition=GRAMMAR),
    Example("Call a tool", "What is the weather in Oslo?", tools=WEATHER),
)
