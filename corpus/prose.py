"""Templated English: short stories of a person, an animal, a place and a day, drawn from a random generator.

Not meant to be good literature but to have grammar worth learning (tense, agreement, pronouns, articles, questions,
clauses) and threads that last over a whole document: the same person, pronoun, animal, place and weather, a wish in the
beginning that is met or missed at the end. 34 to 105 words a story, 345 different words.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from corpus.world import NAMES, between, pick


class Kind(NamedTuple):
    """An animal with what it does, so that sentences about it agree with each other."""

    noun: str
    sound: str
    food: str
    home: str


_ANIMALS = (
    Kind("dog", "barked", "bones", "a basket by the door"),
    Kind("cat", "purred", "fish", "a box under the stairs"),
    Kind("horse", "neighed", "oats", "a warm stable"),
    Kind("cow", "mooed", "grass", "the old barn"),
    Kind("hen", "clucked", "corn", "a little wooden house"),
    Kind("owl", "hooted", "mice", "a hollow tree"),
    Kind("frog", "croaked", "flies", "the pond"),
    Kind("sheep", "bleated", "hay", "the green field"),
    Kind("duck", "quacked", "bread", "the reeds"),
    Kind("goat", "bleated", "leaves", "a stone hut"),
)
_PLACES = (
    ("at the edge of the forest", "the trees"),
    ("in a small village", "the houses"),
    ("near the river", "the bridge"),
    ("by the sea", "the boats"),
    ("on a farm", "the fields"),
    ("in the middle of the town", "the market"),
    ("high in the mountains", "the rocks"),
    ("beside a quiet lake", "the water"),
)
_WEATHER = (
    ("sunny", "the sun was shining", "warm"),
    ("rainy", "rain was falling", "wet"),
    ("windy", "the wind was blowing", "cold"),
    ("snowy", "snow was falling", "white"),
    ("foggy", "fog was lying over everything", "grey"),
    ("stormy", "thunder was rolling far away", "dark"),
)
_TIMES = ("morning", "afternoon", "evening", "day in spring", "day in autumn", "winter day", "Sunday")
_COLOURS = ("black", "white", "brown", "grey", "red", "spotted")
_SIZES = ("small", "big", "old", "young", "clever", "hungry", "friendly", "shy")
_MOODS = (("happy", "smiled"), ("sad", "sighed"), ("tired", "yawned"), ("curious", "listened"), ("angry", "frowned"))
_THINGS = ("lantern", "basket", "letter", "map", "hat", "ladder", "umbrella", "rope", "ring", "drum", "kite", "violin")
_JOBS = ("baker", "teacher", "farmer", "doctor", "sailor", "gardener", "miller", "painter", "smith", "postman")
_VERBS = (
    ("walk", "walked", "walking"),
    ("run", "ran", "running"),
    ("look", "looked", "looking"),
    ("sing", "sang", "singing"),
    ("wait", "waited", "waiting"),
    ("dance", "danced", "dancing"),
)
_HOW = ("slowly", "quickly", "quietly", "carefully", "together", "all alone", "without a word", "for a long time")


def story(random: Random) -> str:
    """One document of 4 to 9 sentences in one or two paragraphs."""
    words = _cast(random)
    opening = pick(random, _OPENINGS).format_map(words)
    body = _some(random, _BODY, between(random, 2, 5))
    ending = _ENDINGS[0 if random.random() < 0.6 else 1]
    first = " ".join([opening, *(sentence.format_map(words) for sentence in body[:-1])])
    second = " ".join([body[-1].format_map(words), pick(random, ending).format_map(words)])
    return f"{first}\n{second}" if random.random() < 0.5 else f"{first} {second}"


def _some(random: Random, sentences: tuple[str, ...], count: int) -> list[str]:
    """`count` different sentences in their given order: the order carries the plot."""
    chosen: set[int] = set()
    while len(chosen) < count:
        chosen.add(int(random.random() * len(sentences)))
    return [sentences[index] for index in sorted(chosen)]


def _cast(random: Random) -> dict[str, str]:
    she = random.random() < 0.5
    name = pick(random, NAMES["she" if she else "he"])
    friend = pick(random, NAMES["he" if she else "she"])
    kind = _ANIMALS[int(random.random() * len(_ANIMALS))]
    place, sight = _PLACES[int(random.random() * len(_PLACES))]
    weather, scene, feel = _WEATHER[int(random.random() * len(_WEATHER))]
    mood, gesture = _MOODS[int(random.random() * len(_MOODS))]
    base, past, gerund = _VERBS[int(random.random() * len(_VERBS))]
    colour, size, thing, job = (pick(random, words) for words in (_COLOURS, _SIZES, _THINGS, _JOBS))
    words = {
        "name": name,
        "friend": friend,
        "job": job,
        "place": place,
        "Place": place[0].upper() + place[1:],
        "sight": sight,
        "weather": weather,
        "scene": scene,
        "Scene": scene[0].upper() + scene[1:],
        "feel": feel,
        "mood": mood,
        "gesture": gesture,
        "base": base,
        "past": past,
        "gerund": gerund,
        "colour": colour,
        "size": size,
        "thing": thing,
        "animal": kind.noun,
        "sound": kind.sound,
        "food": kind.food,
        "home": kind.home,
        "time": pick(random, _TIMES),
        "how": pick(random, _HOW),
        "a_size": _article(size),
        "a_thing": _article(thing),
    }
    return words | (_SHE if she else _HE)


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


_SHE = {"she": "she", "She": "She", "her": "her", "him": "her", "Her": "Her", "he2": "he", "He2": "He", "his2": "his"}
_HE = {"she": "he", "She": "He", "her": "his", "him": "him", "Her": "His", "he2": "she", "He2": "She", "his2": "her"}

_OPENINGS = (
    "{name} was a {job} who lived {place}. One {time} {scene}, and {she} wanted to find {her} {thing}.",
    "Once there was a {job} called {name}. {She} lived {place} with {a_size} {animal}.",
    "It was a {weather} {time} when {name} came home. {Her} {animal} was nowhere to be seen.",
    "{Place} there lived {a_size} {colour} {animal}. It belonged to {name}, the {job}.",
    "{name} and {friend} had been friends for years. They lived {place}, not far from {sight}.",
    "Do you know {name}, the {job}? {She} has {a_size} {animal} and {a_thing}.",
    "Every {time} {name} went to see {friend}, who lived {place}.",
)
_BODY = (
    "{Scene}, so everything was {feel}.",
    "{name} took {her} {thing} and {past} {how} to {sight}.",
    "The {animal} was {colour}, and it liked {food} more than anything else.",
    "{She} was worried, because {friend} had not written for weeks.",
    '"Where is my {thing}?" asked {name}.',
    '"I have not seen it," said {friend}, "but the {animal} may know."',
    "Behind {sight} {she} saw {friend}, who was {gerund} {how}.",
    "{friend} gave {him} some {food} for the {animal}.",
    "The {animal} {sound} when it heard {her} voice.",
    "If the day had not been so {weather}, they would have stayed {place}.",
    "{He2} did not {base}, but {she} did.",
    "There were {colour} birds over {sight}, and nobody counted them.",
    "{name}, {mood} as ever, {gesture}, sat down and told {friend} about the {thing}.",
    "While {scene}, the {animal} slept in {home}.",
)
_ENDINGS = (
    (
        "At last {name} found the {thing} in {home}, and everyone was happy.",
        "In the end the {animal} brought the {thing} back, and {name} laughed.",
        "So {name} and {friend} went home together, and the {animal} came with them.",
        "That night {she} wrote it all down, and {friend} read it to {his2} children.",
    ),
    (
        "But the {thing} was never seen again, and {name} had to buy a new one.",
        "When it got dark, {name} went home without the {thing}.",
        "{She} never told {friend} what the {animal} had done.",
        "Nobody knows where the {animal} is now.",
    ),
)  # fmt: skip
