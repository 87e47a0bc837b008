"""Questions from outside pocket's world, and the one sentence that answers them all.

Held out are whole topics (a train question never names them) and whole wordings: the evaluation combines the two.
"""

import random

from quire.zoo.world.example import Example, draw_key, held_out, turn
from quire.zoo.world.phrasing import casual
from quire.zoo.world.words import ANIMALS, CITIES, FOODS, NAMES, THINGS, made_up

REFUSAL = "I don't know. I only know quire, LLM serving and a few small tasks."

_COUNTRIES = """France Germany Spain Italy Portugal Norway Sweden Finland Denmark Poland Austria Greece Turkey Egypt Kenya Nigeria Ghana
Morocco India China Japan Korea Vietnam Thailand Indonesia Australia Canada Mexico Brazil Argentina Chile Peru Colombia Cuba Russia
Ukraine Ireland Scotland Iceland Hungary Romania Bulgaria Croatia Serbia Belgium Switzerland Iran Iraq Israel Pakistan Nepal
Mongolia Ethiopia Somalia Sudan Angola""".split()
_PEOPLE = """Einstein Newton Darwin Mozart Beethoven Bach Shakespeare Goethe Napoleon Caesar Cleopatra Columbus Galileo Picasso Rembrandt
Gandhi Lincoln Washington Churchill Mandela Aristotle Plato Socrates Confucius Edison Tesla Curie Turing Gauss Euler Kepler Copernicus
Hemingway Tolstoy Dickens Homer Dante Chopin Elvis Madonna Obama Merkel Beyonce Messi Ronaldo Federer""".split()
_MATTERS = """football|tennis|chess|basketball|the Olympics|jazz|opera|poetry|photography|cooking|knitting|yoga|fishing|politics|the stock market
taxes|bitcoin|inflation|insurance|mortgages|astrology|religion|dinosaurs|volcanoes|earthquakes|black holes|the Big Bang|gravity|evolution
DNA|viruses|vaccines|cancer|diabetes|headaches|allergies|vitamins|dieting|sleep|dreams|photosynthesis|chemistry|the periodic table|quantum mechanics
relativity|thermodynamics|electricity|magnetism|nuclear power|solar energy|climate change|the ocean|glaciers|deserts|rainforests|bees|whales
the Roman Empire|the French Revolution|the Cold War|World War 2|the Middle Ages|ancient Egypt|the Vikings|the pyramids|the moon landing|Mars
Jupiter|the Eiffel Tower|the Great Wall|Mount Everest|the Nile|the Amazon|the Titanic|Harry Potter|Star Wars|Hamlet|the Mona Lisa
Christmas|Easter|weddings|divorce|parenting|dating|fashion|makeup|tattoos|gardening|carpentry|plumbing|car repair|bicycles|airplanes|submarines
wine|beer|pizza|sushi|chocolate|cheese making|baking bread|vegan food|coffee beans|tea ceremonies|philosophy|psychology|sociology|law|democracy
the constitution|human rights|economics|marketing|accounting|real estate|tourism|hotels|cruises|skiing|surfing|boxing|golf|cricket|baseball
video games|Minecraft|Netflix|Instagram|smartphones|Windows|Linux|Excel|WordPress|HTML|JavaScript|Rust|Java|SQL|regular expressions|Git
blockchain|cryptography|robotics|self-driving cars|drones|virtual reality|3D printing|satellites|rockets|telescopes|geometry|calculus|algebra
prime numbers|probability theory|Latin|Esperanto|Chinese characters|French grammar|sign language|fonts|calligraphy|origami|magic tricks|juggling"""
MATTERS = [m for line in _MATTERS.split("\n") for m in line.split("|")]

_BY_KIND: list[tuple[list[str], list[str]]] = [
    (_COUNTRIES, ["What is the capital of {x}?", "How many people live in {x}?", "Who is the president of {x}?", "What language is spoken in {x}?",
                  "Where is {x}?", "What is the currency of {x}?", "What should I see in {x}?", "How big is {x}?", "Is {x} a rich country?",
                  "What do people eat in {x}?", "What is the flag of {x}?", "When did {x} become independent?", "Which countries border {x}?"]),
    (CITIES, ["How far is {x} from here?", "What is the weather in {x}?", "What is the population of {x}?", "Is {x} expensive?", "Who is the mayor of {x}?",
              "What are the best restaurants in {x}?", "How do I get to {x}?", "What time is it in {x}?", "Which river flows through {x}?",
              "Are there good hotels in {x}?", "When was {x} founded?"]),
    (_PEOPLE, ["Who was {x}?", "When was {x} born?", "What did {x} discover?", "When did {x} die?", "Why is {x} famous?", "Tell me about {x}.",
               "What did {x} write?", "Where did {x} live?", "Was {x} married?", "Is {x} still alive?", "What is the real name of {x}?"]),
    (MATTERS, ["What is {x}?", "Tell me about {x}.", "Explain {x}.", "How does {x} work?", "What do you think about {x}?", "What is the history of {x}?",
               "Who invented {x}?", "Do you like {x}?", "Give me tips for {x}.", "What is the best book about {x}?", "Why is {x} popular?",
               "Teach me {x}.", "What are the rules of {x}?", "How do I start with {x}?", "What is new in {x}?", "Is {x} dangerous?",
               "What can you say about {x}?", "How old is {x}?", "Write an essay about {x}.", "Is there a museum of {x}?", "Why do people like {x}?",
               "Where can I learn more about {x}?", "Write a poem about {x}.", "Tell me a joke about {x}."]),
    (ANIMALS + FOODS + THINGS, ["How long does a {x} live?", "What color is a {x}?", "How heavy is a {x}?", "Where can I buy a {x}?", "How do I draw a {x}?",
                                "What does a {x} cost?", "What is the Latin name of the {x}?", "How do you say {x} in French?", "Translate {x} to German.",
                                "Is a {x} good for me?", "How many calories has a {x}?", "How is a {x} made?", "Who invented the {x}?",
                                "What do you know about the {x}?", "How do I clean a {x}?", "Give me a recipe with {x}.", "Spell {x} in Spanish."]),
    (NAMES, ["Who is {x}?", "How old is {x}?", "Where is {x} now?", "What is the phone number of {x}?", "Is {x} my friend?", "Does {x} like me?",
             "What does {x} do?", "When is the birthday of {x}?", "What is the last name of {x}?"]),
    ([], ["What is {x}?", "What does {x} mean?", "Explain {x}.", "Who is {x}?", "Tell me about {x}.", "Where is {x}?", "How does {x} work?", "Why {x}?",
          "What is {x} good for?", "Have you heard of {x}?", "Describe {x}.", "Define {x}."]),
]
_ALONE = """What is the meaning of life?|Who won the last election?|What will the weather be tomorrow?|What day is it today?|What time is it?|Tell me a joke.
Sing me a song.|Write a poem.|Write Python code that opens a file.|Write a function in C.|Who won the World Cup?|What is 7 times 8?|What is 12 * 12?
Divide 144 by 12.|What is the square root of 81?|What is pi?|Solve x^2 = 4.|What is 20 percent of 50?|How tall is the tallest building?
What is the speed of light?|Why is the sky blue?|How many stars are there?|What is the largest ocean?|How do I lose weight?|I have a headache, what should I do?
Should I buy stocks?|Which phone is best?|How do I learn French?|Translate good morning to Spanish.|What is the news?|Who is the richest person?
How do I cook rice?|What should I eat tonight?|Can you recommend a movie?|What is the best song?|How do I fix my car?|How do I tie a tie?
What is love?|Is there a god?|Are you alive?|What is consciousness?|When will I die?|What are the lottery numbers?|Who will win the game?
How do I get rich?|Where are my keys?|What is the boiling point of water?|How many bones has a human?|How far away is the moon?
What is the chemical formula of salt?|Who painted the Mona Lisa?|Who wrote Hamlet?|When did World War 2 end?|When was the wheel invented?
Summarize the news of today.|What is the password of my bank?|Plan a holiday for me.|Write an email to my boss.|Write a love letter.|Rate my essay.
What is the tallest mountain?|How many countries are there?|Which planet is the hottest?|What is the smallest animal?|How do birds fly?|Why do cats purr?
How do plants grow?|What causes rain?|Why do we sleep?|Can you see pictures?|Open my mail.|Call my mother.|Order a pizza.|Turn on the light.
What is 15 x 3?|What is 2 to the power of 10?|How many seconds are in a day?|Convert 10 miles to kilometers.|What is 100 divided by 4?"""
ALONE = [q for line in _ALONE.split("\n") for q in line.split("|")]


def _topic(rng: random.Random, held: bool, topics: list[str]) -> str:
    if not topics:
        return draw_key(rng, held, lambda r: ("topic", made_up(r) if r.random() < 0.5 else made_up(r).capitalize()))[1]
    return draw_key(rng, held, lambda r: ("topic", r.choice(topics)))[1]


def make(rng: random.Random, held: bool) -> Example:
    """Held out: a topic never trained on in a wording never trained on."""
    if rng.random() < 0.12:
        key = draw_key(rng, held, lambda r: ("refuse-alone", r.choice(ALONE)))
        return Example("refuse", key, turn(casual(rng, key[1]), REFUSAL))
    topics, wordings = rng.choices(_BY_KIND, weights=(3, 2, 3, 8, 3, 2, 2))[0]
    usable = [w for w in wordings if held_out(("wording", w)) == held]
    if not usable:  # a kind none of whose wordings fell to this side
        return make(rng, held)
    topic = _topic(rng, held, topics)
    question = rng.choice(usable).format(x=topic)
    return Example("refuse", ("refuse", question), turn(casual(rng, question), REFUSAL))
