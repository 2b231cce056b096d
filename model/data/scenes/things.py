"""Vocabulary of scenes: things, styles, colours, backgrounds, counts, relations."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Thing:
    """One kind of object.

    Attributes:
        name, plural: as captions call it.
        label: emojibase's name of the emoji that shows it.
        synonyms: other names, used in captions of a single object.
    """

    name: str
    plural: str
    label: str
    synonyms: tuple[str, ...] = ()

    def call(self, count: int) -> str:
        """The name or the plural, depending on the count."""
        return self.name if count == 1 else self.plural


def _things(table: str) -> dict[str, Thing]:
    """Parse lines of `name / plural / emojibase label / synonyms`; default plural: name + "s"; default label: name."""
    out = {}
    for line in table.strip().splitlines():
        name, plural, label, synonyms = (part.strip() for part in line.split("/"))
        words = tuple(word.strip() for word in synonyms.split(",") if word.strip())
        out[name] = Thing(name, plural or f"{name}s", label or name, words)
    return out


# Chosen to be distinguishable at 48 pixels, by shape rather than by a detail. scenes-128 knows the first 48.
THINGS = _things("""
apple         /              / red apple           /
banana        /              /                     /
strawberry    / strawberries /                     /
lemon         /              /                     /
watermelon    /              /                     / slice of melon
carrot        /              /                     /
mushroom      /              /                     / toadstool
doughnut      /              /                     / donut
hamburger     /              /                     / burger
cactus        / cacti        /                     /
pine tree     /              / evergreen tree      / fir tree
tulip         /              /                     /
sunflower     /              /                     /
cat           /              / cat face            / kitty
dog           /              / dog face            / puppy
rabbit        /              / rabbit face         / bunny
fox           / foxes        /                     /
bear          /              /                     /
panda         /              /                     /
pig           /              / pig face            / piggy
frog          /              /                     /
lion          /              /                     /
fish          / fish         / tropical fish       /
octopus       / octopuses    /                     /
butterfly     / butterflies  /                     /
ladybug       /              / lady beetle         / ladybird
penguin       /              /                     /
owl           /              /                     /
turtle        /              /                     / tortoise
car           /              / automobile          / automobile
bus           / buses        /                     /
rocket        /              /                     / spaceship
airplane      /              /                     / plane
sailboat      /              /                     / boat
house         / houses       /                     / home
castle        /              /                     /
star          /              /                     /
heart         /              / red heart           /
crown         /              /                     /
guitar        /              /                     /
balloon       /              /                     /
umbrella      /              /                     /
bell          /              /                     /
gift          /              / wrapped gift        / present
soccer ball   /              /                     / football
ghost         /              /                     /
snowman       / snowmen      / snowman without snow /
light bulb    /              /                     / lightbulb
pizza         /              /                     / slice of pizza
ice cream     / ice creams   /                     /
grapes        / bunches of grapes /                /
cherries      / pairs of cherries /                /
pear          /              /                     /
whale         /              / spouting whale      /
elephant      /              /                     /
chicken       /              /                     / hen
koala         /              /                     /
snail         /              /                     /
crab          /              /                     /
tiger         /              / tiger face          /
monkey        /              / monkey face         /
mouse         / mice         / mouse face          /
unicorn       /              /                     /
rose          /              /                     /
palm tree     /              /                     /
maple leaf    / maple leaves /                     /
helicopter    /              /                     /
bicycle       /              /                     / bike
fire engine   /              /                     / fire truck
tractor       /              /                     /
locomotive    /              /                     / steam train
tent          /              /                     /
volcano       / volcanoes    /                     /
anchor        /              /                     /
basketball    /              /                     /
drum          /              /                     /
trumpet       /              /                     /
violin        /              /                     /
camera        /              /                     /
alarm clock   /              /                     / clock
key           /              /                     /
hammer        /              /                     /
pencil        /              /                     /
telescope     /              /                     /
top hat       /              /                     /
backpack      /              /                     / rucksack
trophy        / trophies     /                     / cup
gem           /              / gem stone           / diamond
sun           /              /                     /
moon          /              / crescent moon       / crescent
cloud         /              /                     /
jack-o'-lantern /            / jack-o-lantern      / pumpkin lantern
Christmas tree /             /                     /
alien         /              /                     /
lollipop      /              /                     /
""")
COMMON = tuple(THINGS)[:48]

STYLES = ("3d", "noto", "twemoji", "flat", "blob", "emojione")

# Name -> (hue in degrees, saturation, value) that the median pixel of a recoloured thing gets.
COLOURS = {
    "red": (358.0, 0.82, 0.88),
    "orange": (27.0, 0.88, 1.00),
    "yellow": (50.0, 0.80, 1.00),
    "green": (125.0, 0.65, 0.70),
    "blue": (215.0, 0.78, 0.88),
    "purple": (272.0, 0.62, 0.78),
    "pink": (330.0, 0.45, 1.00),
}

# Name -> RGB. Captions rarely mention white; the others are pale, so that every thing stands out.
BACKGROUNDS = {
    "white": (255, 255, 255),
    "gray": (214, 216, 220),
    "yellow": (255, 243, 176),
    "green": (200, 236, 201),
    "blue": (190, 222, 250),
    "pink": (250, 209, 224),
}

# A background that is none: it looks white where transparency is not shown.
TRANSPARENT = "transparent"

COUNTS = {1: "one", 2: "two", 3: "three", 4: "four"}

# Relation of the first thing to the second -> its wordings. Directions: smaller x, larger x, smaller y, larger y.
RELATIONS = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
