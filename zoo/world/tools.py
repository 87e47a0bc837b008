"""Tool calls in the Hermes format, and answers from tool results.

Half of the tools are fixed and plausible, half are invented on the spot, so that the model learns to read
the definitions.
"""

import json
import random
from collections.abc import Callable, Sequence

from quire.zoo.world.example import Example, draw_key, turn
from quire.zoo.world.words import (
    ATTRIBUTES,
    COLOURS,
    DAYS,
    FOODS,
    JOBS,
    PLACES,
    THINGS,
    city,
    made_up,
    name,
    word,
)

Draw = Callable[[random.Random], object]
Spec = tuple[str, str, dict[str, Draw], list[str]]  # name, description, parameters, wordings of a request


def tool(title: str, description: str, params: dict[str, str]) -> dict:
    """An OpenAI tool definition; `params` maps names to JSON types."""
    properties = {k: {"type": v} for k, v in params.items()}
    return {
        "type": "function",
        "function": {
            "name": title,
            "description": description,
            "parameters": {"type": "object", "properties": properties, "required": list(params)},
        },
    }


def call(title: str, arguments: dict) -> str:
    body = json.dumps({"name": title, "arguments": arguments})
    return f"<tool_call>\n{body}\n</tool_call>"


def _time(rng: random.Random) -> str:
    return f"{rng.randint(0, 23)}:{rng.choice(('00', '15', '30', '45'))}"


def _words(low: int, high: int, strange: float) -> Draw:
    return lambda rng: " ".join(word(rng, strange) for _ in range(rng.randint(low, high)))


def _number(low: int, high: int) -> Draw:
    return lambda rng: rng.randint(low, high)


def _one_of(values: Sequence[str]) -> Draw:
    return lambda rng: rng.choice(values)


# name -> description, parameters with how to draw them, requests
_FIXED: dict[str, tuple[str, dict[str, Draw], list[str]]] = {
    "get_weather": (
        "Get the weather of a city.",
        {"city": city},
        [
            "What is the weather in {city}?",
            "How is the weather in {city}?",
            "weather in {city}",
            "Is it raining in {city}?",
        ],
    ),
    "get_time": (
        "Get the time in a city.",
        {"city": city},
        ["What time is it in {city}?", "time in {city}?", "Tell me the time in {city}."],
    ),
    "set_timer": (
        "Set a timer.",
        {"minutes": _number(1, 120)},
        ["Set a timer for {minutes} minutes.", "Wake me in {minutes} minutes.", "timer {minutes} minutes"],
    ),
    "send_message": (
        "Send a message to a person.",
        {"to": name, "text": _words(1, 4, 0.1)},
        ["Send {to} the message: {text}", "Tell {to} this: {text}", "Write to {to}: {text}"],
    ),
    "convert": (
        "Convert money.",
        {"amount": _number(1, 999), "source": _one_of(("USD", "EUR", "GBP")), "target": _one_of(("JPY", "CHF", "INR"))},
        ["Convert {amount} {source} to {target}.", "How much is {amount} {source} in {target}?"],
    ),
    "search": (
        "Search the web.",
        {"query": _words(1, 3, 0.2)},
        ["Search for {query}", "Search the web for {query}", "Look up {query} on the web"],
    ),
    "book_table": (
        "Book a table.",
        {"people": _number(1, 12), "day": _one_of(DAYS), "time": _time},
        ["Book a table for {people} on {day} at {time}.", "I need a table for {people} people, {day} at {time}."],
    ),
    "set_light": (
        "Set the light of a room.",
        {"room": _one_of(PLACES), "color": _one_of(COLOURS)},
        ["Make the light in the {room} {color}.", "Set the {room} light to {color}."],
    ),
    "add_to_list": (
        "Add an item to the shopping list.",
        {"item": _one_of(FOODS + THINGS), "count": _number(1, 30)},
        ["Add {count} {item} to my shopping list.", "Put {count} {item} on the list."],
    ),
    "play_music": ("Play a song.", {"song": _words(1, 3, 0.3)}, ["Play the song {song}", "I want to hear {song}"]),
}
_VERBS = """open close paint move find clean check start stop sell buy lock fix hide count watch wash pack
lift drop get create delete update send
show list read write print play call track cancel order reserve rent compare load save share rate""".split()


def _code(rng: random.Random) -> str:
    return "".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(rng.randint(2, 5)))


_DRAWS = (lambda r: word(r, 0.4), lambda r: word(r, 0.4), lambda r: r.randint(1, 999), city, name, made_up, _code)


_INVENTED_PARAMS = sorted({*ATTRIBUTES, "symbol", "city", "query", "text", "user", "place", "count", "amount"})


def _invented(rng: random.Random) -> Spec:
    """A tool that never was: its requests name the parameters, or just give the values in their order."""
    verb = made_up(rng) if rng.random() < 0.15 else rng.choice(_VERBS)
    thing = made_up(rng) if rng.random() < 0.2 else rng.choice(THINGS + JOBS + ATTRIBUTES + FOODS)
    params = {p: rng.choice(_DRAWS) for p in rng.sample(_INVENTED_PARAMS, rng.choice((1, 1, 1, 2, 2, 3)))}
    title = rng.choice((f"{verb}_{thing}", f"{verb}_{thing}", f"{verb}{thing.capitalize()}", thing))
    said = [f"{p} {{{p}}}" for p in params]
    listed = said[0] if len(said) == 1 else ", ".join(said[:-1]) + " and " + said[-1]
    requests = [
        f"{verb.capitalize()} the {thing} with {listed}.",
        f"Please {verb} the {thing}: {listed}",
        f"{verb} the {thing}, {listed}",
    ]
    if len(params) == 1:
        value = "{" + next(iter(params)) + "}"
        requests += [
            f"{verb} {thing} {value}",
            f"{verb} the {thing} of {value}",
            f"{verb.capitalize()} the {thing} for {value}.",
            f"What is the {thing} of {value}?",
            f"Can you {verb} the {thing} {value}?",
            f"{verb} {thing} of {value}",
            f"{thing} {value}?",
        ]
    description = rng.choice(
        (f"{verb.capitalize()} the {thing}.", f"{verb.capitalize()} a {thing}", f"The {thing} tool.")
    )
    return title, description, params, requests


def _pick(rng: random.Random) -> Spec:
    if rng.random() < 0.6:
        return _invented(rng)
    title = rng.choice(sorted(_FIXED))
    return title, *_FIXED[title]


def define(spec: Spec, rng: random.Random) -> dict:
    kinds = {p: "integer" if isinstance(draw(rng), int) else "string" for p, draw in spec[2].items()}
    return tool(spec[0], spec[1], kinds)


def _result(rng: random.Random, title: str, arguments: dict) -> tuple[str, str]:
    """What the tool might return, and what the assistant says then."""
    if title == "get_weather":
        degrees, sky = rng.randint(-20, 40), rng.choice(("sunny", "cloudy", "rainy", "windy", "foggy"))
        said = f"It is {sky} in {arguments['city']}, {degrees} degrees."
        return json.dumps({"temperature": degrees, "sky": sky}), said
    if title == "get_time":
        clock = _time(rng)
        return json.dumps({"time": clock}), f"It is {clock} in {arguments['city']}."
    if title == "convert":
        amount = rng.randint(1, 99999)
        said = f"{arguments['amount']} {arguments['source']} is {amount} {arguments['target']}."
        return json.dumps({"result": amount}), said
    if rng.random() < 0.15:
        return json.dumps({"status": "error"}), "Sorry, that did not work."
    return json.dumps({"status": "ok"}), "Done."


def toolbox(rng: random.Random) -> list[Spec]:
    """One to four tools of different names."""
    found: dict = {}
    while len(found) < 4:
        spec = _pick(rng)
        found[spec[0]] = spec
    return list(found.values())[: rng.choice((1, 2, 2, 3, 4))]


def request(rng: random.Random, held: bool, spec: Spec) -> tuple[tuple, str, dict]:
    key = draw_key(rng, held, lambda r: ("tool", spec[0], *(draw(r) for draw in spec[2].values())))
    arguments = dict(zip(spec[2], key[2:], strict=True))
    return key, rng.choice(spec[3]).format(**arguments), arguments


def make(rng: random.Random, held: bool, box: list | None = None, definitions: list[dict] | None = None) -> Example:
    """A request that needs one of the tools; in training often with the result and a second request."""
    box = box or toolbox(rng)
    definitions = definitions or [define(spec, rng) for spec in box]
    messages: list[dict] = []
    for _ in range(1 if held else rng.choice((1, 2, 3))):
        spec = rng.choice(box)
        key, question, arguments = request(rng, held, spec)
        messages += turn(question, call(spec[0], arguments))
        if not held and rng.random() < 0.6:
            result, answer = _result(rng, spec[0], arguments)
            messages += [{"role": "tool", "content": result}, {"role": "assistant", "content": answer}]
    return Example("tool-call", key, messages, definitions)
