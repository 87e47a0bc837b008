"""JSON extraction: a short text and the names of the wanted fields in, one JSON object out."""

import json
import random

from quire.zoo.world.example import Example, draw_key, turn
from quire.zoo.world.words import (
    ATTRIBUTES,
    COLOURS,
    DAYS,
    FOODS,
    JOBS,
    MONTHS,
    THINGS,
    city,
    made_up,
    name,
    word,
)


def _time(rng: random.Random) -> str:
    return f"{rng.randint(7, 21)}:{rng.choice(('00', '15', '30', '45'))}"


# fields with their values, and the texts that state them; every text states all fields of its record
_RECORDS: list[tuple[dict, list[str]]] = [
    (
        {"name": name, "age": lambda r: r.randint(5, 99), "city": city},
        [
            "{name} is {age} years old and lives in {city}.",
            "My friend {name} from {city} is {age}.",
            "{name}, {age}, moved to {city} last year.",
            "In {city} I met {name}, who is {age} years old.",
        ],
    ),
    (
        {"name": name, "job": lambda r: r.choice(JOBS), "city": city},
        [
            "{name} works as a {job} in {city}.",
            "The {job} {name} has an office in {city}.",
            "{city} has a new {job}: {name}.",
        ],
    ),
    (
        {
            "item": lambda r: r.choice(THINGS + FOODS),
            "quantity": lambda r: r.randint(1, 60),
            "price": lambda r: r.randint(1, 500),
        },
        [
            "Please order {quantity} of the item {item} for {price} dollars.",
            "We bought {quantity} x {item} and paid {price} dollars.",
            "Item: {item}, {quantity} pieces, {price} dollars in total.",
        ],
    ),
    (
        {
            "event": lambda r: r.choice("meeting party concert lesson match lecture".split()),
            "day": lambda r: r.choice(DAYS),
            "time": _time,
            "place": city,
        },
        [
            "The {event} is on {day} at {time} in {place}.",
            "On {day} there is a {event} in {place}, it starts at {time}.",
            "Do not forget the {event} in {place}: {day}, {time}.",
        ],
    ),
    (
        {
            "name": name,
            "email": lambda r: f"{made_up(r)}@{made_up(r)}.{r.choice(('com', 'org', 'net'))}",
            "phone": lambda r: str(r.randint(10000, 999999)),
        },
        [
            "You can reach {name} at {email} or by phone at {phone}.",
            "{name}: {email}, {phone}",
            "Write to {name} ({email}) or call {phone}.",
        ],
    ),
    (
        {
            "color": lambda r: r.choice(COLOURS),
            "product": lambda r: r.choice(THINGS),
            "size": lambda r: r.choice(("small", "medium", "large")),
        },
        [
            "I want a {size} {product} in {color}.",
            "The {product} comes in {color}, size {size}.",
            "One {color} {product}, {size}, please.",
        ],
    ),
    (
        {"from": city, "to": city, "month": lambda r: r.choice(MONTHS)},
        [
            "We fly from {from} to {to} in {month}.",
            "The trip in {month} goes from {from} to {to}.",
            "In {month} she moves to {to} from {from}.",
        ],
    ),
]
_ASK = [
    "Extract {f} as JSON: {x}",
    "Extract {f} as JSON.\n{x}",
    "{x}\nGive me {f} as JSON.",
    "Return JSON with {f}: {x}",
    "JSON with {f}, please: {x}",
    "From this text extract {f} as JSON: {x}",
    "{x}\n\nExtract as JSON with the fields {f}.",
]
_ASK_SCHEMA = [
    "Fill this schema: {s}\n{x}",
    "Extract JSON with this schema: {s}\nText: {x}",
    "{x}\nSchema: {s}",
    "Schema: {s}\nText: {x}",
]


def _invented(rng: random.Random) -> tuple[dict, list[str]]:
    """Fields of any name, so that the names in the question are read and not guessed."""
    names = rng.sample(sorted(set(ATTRIBUTES)), rng.randint(2, 4))
    fields = {n: rng.choice((lambda r: r.randint(0, 9999), lambda r: word(r, 0.4), city, name)) for n in names}
    middle = [f"the {n} is {{{n}}}" for n in names]
    rng.shuffle(middle)
    sentence = ", ".join(middle[:-1]) + " and " + middle[-1] + "."
    return fields, [
        sentence[0].upper() + sentence[1:],
        ", ".join(f"{n} {{{n}}}" for n in names),
        "\n".join(f"{n}: {{{n}}}" for n in names),
    ]


def make(rng: random.Random, held: bool) -> Example:
    """Two or more fields in the order asked for, numbers as numbers."""
    index = rng.randrange(len(_RECORDS) + 3)
    fields, texts = _RECORDS[index] if index < len(_RECORDS) else _invented(rng)
    key = draw_key(rng, held, lambda r: ("json", tuple(fields), *(draw(r) for draw in fields.values())))
    record = dict(zip(fields, key[2:], strict=True))
    wanted = rng.sample(list(fields), rng.randint(2, len(fields)))
    text = rng.choice(texts).format(**record)
    if rng.random() < 0.3:
        text = rng.choice(["Hello!", "As you know,", "Note:", "Good news."]) + " " + text
    if rng.random() < 0.35:
        schema = json.dumps({f: "number" if isinstance(record[f], int) else "string" for f in wanted})
        question = rng.choice(_ASK_SCHEMA).format(s=schema, x=text)
    else:
        names = ", ".join(wanted) if rng.random() < 0.4 else ", ".join(wanted[:-1]) + " and " + wanted[-1]
        question = rng.choice(_ASK).format(f=names, x=text)
    return Example("json", key, turn(question, json.dumps({f: record[f] for f in wanted})))
