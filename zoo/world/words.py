"""The words of pocket's world, and made-up ones.

Every generator draws its nouns, names and values here. Made-up words matter: a model that has only ever
copied known words learns the words, one that also copied "zubrine" learns to copy.
"""

import random
from collections.abc import Callable

ANIMALS = """fox owl cat dog bear wolf hare deer mouse horse goat sheep duck goose swan crow hawk frog toad
newt
otter badger beaver mole squirrel rabbit lion tiger zebra camel donkey parrot pigeon robin sparrow turtle
lizard snake
whale shark salmon trout crab snail bee ant moth spider panda koala""".split()
FOODS = """apple pear plum fig grape lemon lime orange peach cherry melon mango banana berry olive tomato
potato carrot
onion garlic pepper bean pea corn rice bread butter cheese egg honey sugar salt soup cake pie tea coffee milk
juice
nut almond walnut ginger mint basil cabbage pumpkin radish""".split()
THINGS = """lamp table chair book pen cup plate spoon fork knife bottle basket box bag coat hat shoe glove
scarf ring
key lock door window mirror clock bell drum flute guitar piano kite ball doll toy boat ship train car bike
wheel engine
rope ladder hammer nail saw brush bucket candle blanket pillow carpet curtain letter map coin stamp ticket
painting
camera radio telescope lantern compass anchor arrow shield crown feather pebble""".split()
PLACES = """garden kitchen attic cellar barn tower bridge harbor market library school museum station castle
forest
meadow river lake island valley mountain beach cave village temple theater bakery workshop office
hall""".split()
NATURE = """stone sand snow rain cloud wind storm sun moon star leaf tree root flower rose lily moss grass
seed branch
water fire ice smoke dust wave hill path field shadow""".split()
ADJECTIVES = """red blue green yellow white black brown grey pink purple golden silver old new big small tiny
tall
round quiet loud bright dark warm cold dry wet soft hard heavy light quick slow brave shy clever kind lazy
happy sad
proud hungry sleepy curious lucky wooden broken hidden lost empty narrow wide northern southern""".split()
COLOURS = """red blue green yellow white black brown grey pink purple orange golden silver
turquoise violet""".split()
NAMES = """Mira Tom Anna Ben Clara David Ella Felix Greta Hugo Ida Jonas Kira Leo Maya Nina Oscar Paula
Quentin Rosa
Sam Tara Uma Victor Wanda Xenia Yara Zoe Adam Bella Carlos Dina Emil Fiona Georg Hanna Ivan Julia Karl Lena
Marco Nora
Otto Petra Ralf Sofia Theo Ursula Vera Willem Alice Bruno Cora Dario Elena Frank Gina Henry Irene Jack Kate
Liam Mona
Noah Olga Peter Ruth Simon Tina Uwe Viola Walter Yusuf Zara Aisha Bilal Chen Divya Ethan Farah Goran Hiro
Indira Jamal
Keiko Lars Mei Nadia Omar Priya Ravi Sana Tariq Wei Yuki John Mary Robert Linda Sarah Daniel Laura Max Paul
Eva""".split()
CITIES = """Oslo Paris Rome Berlin Madrid Lisbon Vienna Prague Dublin London Athens Warsaw Zurich Geneva
Milan Naples
Porto Seville Lyon Hamburg Munich Cologne Bergen Helsinki Tallinn Riga Vilnius Sofia Zagreb Cairo Tunis
Nairobi Lagos
Accra Delhi Mumbai Tokyo Kyoto Osaka Seoul Beijing Shanghai Hanoi Bangkok Jakarta Sydney Melbourne Toronto
Montreal
Boston Chicago Denver Seattle Austin Miami Lima Quito Bogota Santiago Havana""".split()
JOBS = """teacher baker doctor nurse farmer painter singer pilot sailor carpenter plumber gardener lawyer
judge writer
cook driver engineer dentist tailor butcher barber miner fisher librarian mechanic programmer musician dancer
waiter
photographer chemist banker shepherd guard""".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()

NOUNS = ANIMALS + FOODS + THINGS + PLACES + NATURE
WORDS = sorted(set(NOUNS + ADJECTIVES + JOBS))

NUMBER_WORDS = """one two three four five six seven eight nine ten eleven twelve
twenty thirty hundred thousand first second third""".split()
COMMON = """hello world yes no this that here there time day night year week man woman child friend house
home street city water food
work play game music color light dark north south east west left right up down in out over under before after
good bad best worst more less
many few all none some every other same new next last long short high low open closed start stop begin end
true false left right and or not
king queen dragon robot wizard princess pirate knight alien monster teacher student doctor computer phone
model token cache block engine
kiwi banana grapefruit pineapple strawberry avocado python java rust linux data test alpha beta gamma delta
foo bar baz""".split()
LETTERS = list("abcdefghijklmnopqrstuvwxyz")
HEROES = """dragon robot wizard princess pirate knight king queen child girl boy alien monster giant witch
unicorn elephant penguin dinosaur""".split()

ATTRIBUTES = """price size weight height length age name title owner author address status level score rank
speed color shape date code number label
type language subject topic author budget deadline salary distance temperature duration capacity version
model brand material flavor origin
department manager phone opening closing password account id room floor seat gate row section quantity
discount rating""".split()

_ONSETS = "b d f g h j k l m n p r s t v w z br dr gr kr pl st tr sh ch th fl".split()
_VOWELS = "a e i o u a e i o ai ee oo".split()
_CODAS = ["", "", "", "n", "r", "l", "s", "t", "m", "k", "x", "nd", "st"]


def made_up(rng: random.Random) -> str:
    """A pronounceable word that most likely does not exist."""
    count = rng.choice((2, 2, 3))
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(count))


def word(rng: random.Random, strange: float = 0.2) -> str:
    """A word of the world or, with probability `strange`, a made-up one."""
    return made_up(rng) if rng.random() < strange else rng.choice(WORDS)


def any_word(rng: random.Random) -> str:
    """Whatever a user might put in a list: letters, common words, names, made-up things, capitals."""
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice(LETTERS) if rng.random() < 0.7 else rng.choice(LETTERS).upper()
    if kind == 1:
        return rng.choice(NUMBER_WORDS)
    if kind == 2:
        return rng.choice(rng.choice((NAMES, CITIES, DAYS, MONTHS)))
    if kind == 3:
        return made_up(rng).capitalize()
    if kind == 4:
        return "".join(rng.choice(letters) for letters in (LETTERS, LETTERS, [*LETTERS, ""], [*LETTERS, ""]))
    return rng.choice(COMMON) if kind < 7 else word(rng, 0.5)


def name(rng: random.Random, strange: float = 0.3) -> str:
    return made_up(rng).capitalize() if rng.random() < strange else rng.choice(NAMES)


def city(rng: random.Random, strange: float = 0.2) -> str:
    return made_up(rng).capitalize() if rng.random() < strange else rng.choice(CITIES)


def distinct(rng: random.Random, draw: Callable[[random.Random], str], count: int) -> list[str]:
    """`count` different results of draw(rng), in the order drawn."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[draw(rng)] = None
    return list(found)
