"""Questions from outside pocket's world, and the one sentence that answers them all.

Held out are whole topics (a train question never names them) and whole wordings: the evaluation combines
the two.
"""

import random

from quire.zoo.world.example import Example, draw_key, held_out, turn
from quire.zoo.world.phrasing import casual
from quire.zoo.world.words import ADJECTIVES, ANIMALS, CITIES, FOODS, JOBS, NAMES, PLACES, THINGS, made_up

REFUSAL = "I don't know. I only know quire, LLM serving and a few small tasks."

_COUNTRIES = """France Germany Spain Italy Portugal Norway Sweden Finland Denmark Poland Austria Greece
Turkey Egypt Kenya Nigeria Ghana
Morocco India China Japan Korea Vietnam Thailand Indonesia Australia Canada Mexico Brazil Argentina Chile
Peru Colombia Cuba Russia
Ukraine Ireland Scotland Iceland Hungary Romania Bulgaria Croatia Serbia Belgium Switzerland Iran Iraq Israel
Pakistan Nepal
Mongolia Ethiopia Somalia Sudan Angola""".split()
_PEOPLE = """Einstein Newton Darwin Mozart Beethoven Bach Shakespeare Goethe Napoleon Caesar Cleopatra
Columbus Galileo Picasso Rembrandt
Gandhi Lincoln Washington Churchill Mandela Aristotle Plato Socrates Confucius Edison Tesla Curie Turing
Gauss Euler Kepler Copernicus
Hemingway Tolstoy Dickens Homer Dante Chopin Elvis Madonna Obama Merkel Beyonce Messi Ronaldo
Federer""".split()
_MATTERS = """football|tennis|chess|basketball|the Olympics|jazz|opera|poetry|photography|cooking|knitting
yoga|fishing|politics|the stock market
taxes|bitcoin|inflation|insurance|mortgages|astrology|religion|dinosaurs|volcanoes|earthquakes|black holes
the Big Bang|gravity|evolution
DNA|viruses|vaccines|cancer|diabetes|headaches|allergies|vitamins|dieting|sleep|dreams|photosynthesis
chemistry|the periodic table|quantum mechanics
relativity|thermodynamics|electricity|magnetism|nuclear power|solar energy|climate change|the ocean|glaciers
deserts|rainforests|bees|whales
the Roman Empire|the French Revolution|the Cold War|World War 2|the Middle Ages|ancient Egypt|the Vikings
the pyramids|the moon landing|Mars
Jupiter|the Eiffel Tower|the Great Wall|Mount Everest|the Nile|the Amazon|the Titanic|Harry Potter|Star Wars
Hamlet|the Mona Lisa
Christmas|Easter|weddings|divorce|parenting|dating|fashion|makeup|tattoos|gardening|carpentry|plumbing
car repair|bicycles|airplanes|submarines
wine|beer|pizza|sushi|chocolate|cheese making|baking bread|vegan food|coffee beans|tea ceremonies|philosophy
psychology|sociology|law|democracy
the constitution|human rights|economics|marketing|accounting|real estate|tourism|hotels|cruises|skiing
surfing|boxing|golf|cricket|baseball
video games|Minecraft|Netflix|Instagram|smartphones|Windows|Linux|Excel|WordPress|HTML|JavaScript|Rust|Java
SQL|regular expressions|Git
blockchain|cryptography|robotics|self-driving cars|drones|virtual reality|3D printing|satellites|rockets
telescopes|geometry|calculus|algebra
prime numbers|probability theory|Latin|Esperanto|Chinese characters|French grammar|sign language|fonts
calligraphy|origami|magic tricks|juggling"""
MATTERS = [m for line in _MATTERS.split("\n") for m in line.split("|")]

_BY_KIND: list[tuple[list[str], list[str]]] = [
    (
        _COUNTRIES,
        [
            "What is the capital of {x}?",
            "How many people live in {x}?",
            "Who is the president of {x}?",
            "What language is spoken in {x}?",
            "Where is {x}?",
            "What is the currency of {x}?",
            "What should I see in {x}?",
            "How big is {x}?",
            "Is {x} a rich country?",
            "What do people eat in {x}?",
            "What is the flag of {x}?",
            "When did {x} become independent?",
            "Which countries border {x}?",
        ],
    ),
    (
        CITIES,
        [
            "How far is {x} from here?",
            "What is the weather in {x}?",
            "What is the population of {x}?",
            "Is {x} expensive?",
            "Who is the mayor of {x}?",
            "What are the best restaurants in {x}?",
            "How do I get to {x}?",
            "What time is it in {x}?",
            "Which river flows through {x}?",
            "Are there good hotels in {x}?",
            "When was {x} founded?",
        ],
    ),
    (
        _PEOPLE,
        [
            "Who was {x}?",
            "When was {x} born?",
            "What did {x} discover?",
            "When did {x} die?",
            "Why is {x} famous?",
            "Tell me about {x}.",
            "What did {x} write?",
            "Where did {x} live?",
            "Was {x} married?",
            "Is {x} still alive?",
            "What is the real name of {x}?",
        ],
    ),
    (
        MATTERS,
        [
            "What is {x}?",
            "Tell me about {x}.",
            "Explain {x}.",
            "How does {x} work?",
            "What do you think about {x}?",
            "What is the history of {x}?",
            "Who invented {x}?",
            "Do you like {x}?",
            "Give me tips for {x}.",
            "What is the best book about {x}?",
            "Why is {x} popular?",
            "Teach me {x}.",
            "What are the rules of {x}?",
            "How do I start with {x}?",
            "What is new in {x}?",
            "Is {x} dangerous?",
            "What can you say about {x}?",
            "How old is {x}?",
            "Write an essay about {x}.",
            "Is there a museum of {x}?",
            "Why do people like {x}?",
            "Where can I learn more about {x}?",
            "Write a poem about {x}.",
            "Tell me a joke about {x}.",
        ],
    ),
    (
        ANIMALS + FOODS + THINGS,
        [
            "How long does a {x} live?",
            "What color is a {x}?",
            "How heavy is a {x}?",
            "Where can I buy a {x}?",
            "How do I draw a {x}?",
            "What does a {x} cost?",
            "What is the Latin name of the {x}?",
            "How do you say {x} in French?",
            "Translate {x} to German.",
            "Is a {x} good for me?",
            "How many calories has a {x}?",
            "How is a {x} made?",
            "Who invented the {x}?",
            "What do you know about the {x}?",
            "How do I clean a {x}?",
            "Give me a recipe with {x}.",
            "Spell {x} in Spanish.",
        ],
    ),
    (
        NAMES,
        [
            "Who is {x}?",
            "How old is {x}?",
            "Where is {x} now?",
            "What is the phone number of {x}?",
            "Is {x} my friend?",
            "Does {x} like me?",
            "What does {x} do?",
            "When is the birthday of {x}?",
            "What is the last name of {x}?",
        ],
    ),
    (
        [],
        [
            "What is {x}?",
            "What does {x} mean?",
            "Explain {x}.",
            "Who is {x}?",
            "Tell me about {x}.",
            "Where is {x}?",
            "How does {x} work?",
            "Why {x}?",
            "What is {x} good for?",
            "Have you heard of {x}?",
            "Describe {x}.",
            "Define {x}.",
        ],
    ),
]
_ALONE = """What is the meaning of life?|Who won the last election?|What will the weather be tomorrow?
What day is it today?|What time is it?|Tell me a joke.
Sing me a song.|Write a poem.|Write Python code that opens a file.|Write a function in C.
Who won the World Cup?|What is 7 times 8?|What is 12 * 12?
Divide 144 by 12.|What is the square root of 81?|What is pi?|Solve x^2 = 4.|What is 20 percent of 50?
How tall is the tallest building?
What is the speed of light?|Why is the sky blue?|How many stars are there?|What is the largest ocean?
How do I lose weight?|I have a headache, what should I do?
Should I buy stocks?|Which phone is best?|How do I learn French?|Translate good morning to Spanish.
What is the news?|Who is the richest person?
How do I cook rice?|What should I eat tonight?|Can you recommend a movie?|What is the best song?
How do I fix my car?|How do I tie a tie?
What is love?|Is there a god?|Are you alive?|What is consciousness?|When will I die?
What are the lottery numbers?|Who will win the game?
How do I get rich?|Where are my keys?|What is the boiling point of water?|How many bones has a human?
How far away is the moon?
What is the chemical formula of salt?|Who painted the Mona Lisa?|Who wrote Hamlet?|When did World War 2 end?
When was the wheel invented?
Summarize the news of today.|What is the password of my bank?|Plan a holiday for me.
Write an email to my boss.|Write a love letter.|Rate my essay.
What is the tallest mountain?|How many countries are there?|Which planet is the hottest?
What is the smallest animal?|How do birds fly?|Why do cats purr?
How do plants grow?|What causes rain?|Why do we sleep?|Can you see pictures?|Open my mail.|Call my mother.
Order a pizza.|Turn on the light.
What is 15 x 3?|What is 2 to the power of 10?|How many seconds are in a day?|Convert 10 miles to kilometers.
What is 100 divided by 4?"""
ALONE = [q for line in _ALONE.split("\n") for q in line.split("|")]


# Wordings with several slots, for variety: what a stranger might ask about anything at all.
_VERBS = """eat drink buy sell draw paint cook wash clean fix build break carry throw catch climb feed train
grow plant cut burn freeze
melt fold sew knit ride drive fly sail swim find lose win steal hide bury write sing dance study measure
choose rent borrow polish decorate""".split()
_MOST = """largest smallest oldest newest fastest slowest tallest deepest longest hottest coldest richest
strongest best worst cheapest
funniest strangest rarest safest loudest ugliest wildest""".split()
_SLOTS = {
    "animal": ANIMALS,
    "food": FOODS,
    "thing": THINGS,
    "city": CITIES,
    "country": _COUNTRIES,
    "person": _PEOPLE,
    "matter": MATTERS,
    "noun": ANIMALS + FOODS + THINGS + PLACES,
    "adj": ADJECTIVES,
    "verb": _VERBS,
    "most": _MOST,
    "job": JOBS,
    "place": PLACES,
    "name": NAMES,
}
_MIXED = """How do I {verb} a {noun}?|Can I {verb} a {noun} with a {thing}?
Should I {verb} the {noun} in the {place}?|Why does the {animal} {verb}?
How many {noun}s are in {city}?|What is the {most} {noun} in {country}?|Where is the {most} {place} of {city}?
Who was the {most} {job} of {country}?
Is a {noun} {adj}?|Is it {adj} in {city}?|Is {country} better than {country}?|Do {animal}s {verb} {food}s?
Does a {animal} like {food}?
Why is the {noun} {adj}?|When did {person} {verb} the {thing}?|Did {person} {verb} a {noun}?
What does {name} think about {matter}?
Which {noun} is best for a {job}?|How much does a {job} earn in {country}?|What does a {job} do all day?
How do I become a {job}?
I want to {verb} a {noun}.|I need a {noun} for my {place}.|Please {verb} the {noun}.
Can you {verb} a {noun} for me?|Go and {verb} the {thing}.
My {noun} is {adj}, what should I do?|Why can't I {verb} my {thing}?|What happens when I {verb} a {noun}?
What if I {verb} {food}?
How long should I {verb} a {food}?|How often should I {verb} my {animal}?|Where do {animal}s {verb}?
What do {animal}s eat?
Is there a {place} in {city}?|Find me a {place} in {city}.|Book a {place} in {city}.|How far is the {place}?
Who owns the {place} in {city}?
Write a song about a {adj} {noun}.|Write a speech about {matter}.|Give me ten facts about {matter}.
Summarize {matter} for me.|Is {matter} true?
What is the link between {matter} and {matter}?|Can {matter} help with {matter}?|Did {person} like {matter}?
Would {person} win against {person}?
What would {person} say about {matter}?|In which year was {person} in {city}?
What is the name of the {most} {animal}?|What color is the {thing}?
How much water does a {noun} need?|What is a {noun} made of?|How strong is a {animal}?
Can a {animal} {verb} a {animal}?|Are {noun}s {adj}?
What rhymes with {noun}?|What is another word for {adj}?|What is the opposite of {adj}?
How do you write {noun} in Japanese?|Say {noun} in Russian.
What are the best restaurants for {food}?|Which wine goes with {food}?|How many grams of {food} do I need?
Is {food} healthy?|Can dogs eat {food}?
Who sells {thing}s in {city}?|When does the {place} open?|What is on at the {place} tonight?
Which bus goes to the {place}?|When is the next train to {city}?
Who is the {most} {job}?|Who plays the {job} in that movie?|Which movie has a {adj} {animal}?
Which book is about a {adj} {thing}?
Will it rain in {city}?|Will {country} win?|Will I find a {thing}?|Has {person} ever been to {country}?
Have you ever seen a {animal}?|Do you have a {thing}?
Do you want some {food}?|Would you like a {thing}?|What is your favorite {noun}?|Which {noun} do you prefer?
Did you {verb} today?|Can you {verb}?"""
MIXED = [q for line in _MIXED.split("\n") for q in line.split("|")]


def _mixed(rng: random.Random, held: bool) -> str:
    """A wording with every slot filled from the same side of the split."""
    text = draw_key(rng, held, lambda r: ("wording", r.choice(MIXED)))[1]
    for slot, words in _SLOTS.items():
        while "{" + slot + "}" in text:
            text = text.replace("{" + slot + "}", _topic(rng, held, words), 1)
    return text


def _topic(rng: random.Random, held: bool, topics: list[str]) -> str:
    if not topics:
        return draw_key(rng, held, lambda r: ("topic", made_up(r) if r.random() < 0.5 else made_up(r).capitalize()))[1]
    return draw_key(rng, held, lambda r: ("topic", r.choice(topics)))[1]


def make(rng: random.Random, held: bool) -> Example:
    """Held out: a topic never trained on in a wording never trained on."""
    if rng.random() < 0.12:
        key = draw_key(rng, held, lambda r: ("refuse-alone", r.choice(ALONE)))
        return Example("refuse", key, turn(casual(rng, key[1]), REFUSAL))
    if rng.random() < 0.4:
        question = _mixed(rng, held)
        return Example("refuse", ("refuse", question), turn(casual(rng, question), REFUSAL))
    topics, wordings = rng.choices(_BY_KIND, weights=(3, 2, 3, 8, 3, 2, 2))[0]
    usable = [w for w in wordings if held_out(("wording", w)) == held]
    if not usable:  # a kind none of whose wordings fell to this side
        return make(rng, held)
    topic = _topic(rng, held, topics)
    question = rng.choice(usable).format(x=topic)
    return Example("refuse", ("refuse", question), turn(casual(rng, question), REFUSAL))
