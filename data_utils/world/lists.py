"""The words of the generated world: hand-written lists, nothing drawn here.

Everything that can appear in a generated sentence stands in this file, in `templates.py` or in the question forms of
`tasks.py`; the vocabulary is made from them, so it does not depend on a seed.
"""

from __future__ import annotations

PEOPLE = (
    "Anna", "Ben", "Carla", "David", "Elsa", "Felix", "Greta", "Hugo", "Irene", "Jonas", "Karin", "Leo", "Mara", "Nils",
    "Olga", "Paul", "Rosa", "Simon", "Tessa", "Viktor", "Wanda", "Yusuf", "Zoe", "Amir", "Bella", "Cyrus", "Dora",
    "Emil", "Flora", "Gavin", "Helga", "Igor",
)  # fmt: skip
TOWNS = (
    "Dalby", "Norwick", "Helmton", "Maplow", "Corvin", "Eastmere", "Stonham", "Birkdale", "Lowick", "Tarnby", "Fenwold",
    "Gatley", "Harrow", "Inverby", "Kelton", "Rushmoor",
)  # fmt: skip
REGIONS = ("north", "south", "east", "west")
RIVERS = ("Alder", "Brin", "Dove", "Esk", "Lorn", "Mede", "Tamar", "Wye")
PRODUCTS = ("cheese", "glass", "wool", "paper", "salt", "honey", "rope", "tiles")
JOBS = (
    "baker", "teacher", "nurse", "farmer", "painter", "sailor", "tailor", "miner", "singer", "builder", "clerk",
    "driver",
)  # fmt: skip
FOODS = ("soup", "bread", "rice", "fish", "cabbage", "plums", "noodles", "eggs", "beans", "pears")
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "grey")

# name: (class, home, food)
ANIMALS = {
    "robin": ("bird", "forest", "worms"), "crow": ("bird", "field", "corn"), "owl": ("bird", "barn", "mice"),
    "goose": ("bird", "meadow", "grass"), "duck": ("bird", "pond", "weeds"), "swan": ("bird", "lake", "weeds"),
    "trout": ("fish", "river", "flies"), "salmon": ("fish", "sea", "shrimps"), "carp": ("fish", "pond", "worms"),
    "eel": ("fish", "river", "frogs"), "cat": ("mammal", "house", "mice"), "dog": ("mammal", "house", "meat"),
    "horse": ("mammal", "stable", "hay"), "cow": ("mammal", "barn", "hay"), "sheep": ("mammal", "meadow", "grass"),
    "rabbit": ("mammal", "burrow", "carrots"),
    "otter": ("mammal", "river", "crabs"), "fox": ("mammal", "burrow", "mice"),
    "lizard": ("reptile", "desert", "flies"), "turtle": ("reptile", "sea", "crabs"),
    "snake": ("reptile", "desert", "frogs"), "bee": ("insect", "hive", "nectar"), "ant": ("insect", "forest", "leaves"),
    "moth": ("insect", "attic", "nectar"),
}  # fmt: skip
PETS = ("robin", "duck", "carp", "cat", "dog", "horse", "rabbit", "lizard", "turtle", "crow", "goose", "trout")

# name: (material, size, place, use)
OBJECTS = {
    "cup": ("clay", "small", "kitchen", "drinking"), "plate": ("clay", "small", "kitchen", "serving"),
    "vase": ("glass", "large", "hall", "flowers"), "bowl": ("wood", "large", "kitchen", "serving"),
    "jar": ("glass", "small", "cellar", "storing"), "bottle": ("glass", "small", "cellar", "drinking"),
    "lamp": ("brass", "large", "bedroom", "reading"),
    "shirt": ("cotton", "small", "bedroom", "wearing"), "coat": ("wool", "large", "hall", "wearing"),
    "scarf": ("wool", "small", "hall", "wearing"), "blanket": ("wool", "large", "bedroom", "sleeping"),
    "hat": ("felt", "small", "hall", "wearing"), "dress": ("cotton", "large", "attic", "dancing"),
    "towel": ("cotton", "small", "attic", "drying"),
    "knife": ("iron", "small", "kitchen", "cutting"), "hammer": ("iron", "small", "shed", "building"),
    "saw": ("iron", "large", "shed", "cutting"), "axe": ("iron", "large", "shed", "chopping"),
    "spade": ("iron", "large", "garden", "digging"), "pick": ("iron", "large", "cellar", "digging"),
    "pan": ("copper", "small", "kitchen", "frying"),
    "cart": ("wood", "large", "yard", "hauling"), "boat": ("wood", "large", "yard", "rowing"),
    "bike": ("iron", "small", "shed", "riding"), "truck": ("iron", "large", "yard", "hauling"),
    "wagon": ("wood", "large", "yard", "riding"), "van": ("iron", "large", "yard", "hauling"),
    "sled": ("wood", "small", "attic", "riding"),
    "chair": ("wood", "small", "hall", "sitting"), "table": ("wood", "large", "kitchen", "eating"),
    "mirror": ("glass", "large", "bedroom", "shaving"), "clock": ("brass", "small", "hall", "timing"),
    "drum": ("copper", "large", "attic", "music"), "flute": ("brass", "small", "bedroom", "music"),
    "ladder": ("wood", "large", "garden", "climbing"), "basket": ("straw", "small", "garden", "storing"),
    "candle": ("wax", "small", "bedroom", "reading"), "broom": ("straw", "large", "cellar", "sweeping"),
    "pillow": ("cotton", "small", "bedroom", "sleeping"), "net": ("rope", "large", "shed", "fishing"),
}  # fmt: skip

VERBS = {
    "true": ("knows that", "remembers that", "noticed that"),
    "false": ("denies that", "pretends that", "lied that"),
    "unknown": ("wonders whether", "hopes that", "asks whether"),
}

# Chains of three events. `{x}` is an object with its colour, or a person. Within a pattern no two events share a
# content word, and within a group no event of one pattern is a plausible cause or effect of another pattern's.
OBJECT_GROUPS: dict[str, tuple[str, ...]] = {
    "dishes": ("cup", "plate", "vase", "bowl", "jar", "bottle", "lamp"),
    "clothes": ("shirt", "coat", "scarf", "blanket", "hat", "dress", "towel"),
    "tools": ("knife", "hammer", "saw", "axe", "spade", "pick", "pan"),
    "vehicles": ("cart", "boat", "bike", "truck", "wagon", "van", "sled"),
}
OBJECT_PATTERNS: dict[str, dict[str, tuple[str, str, str]]] = {
    "dishes": {
        "shelf": ("the {x} slid off the shelf", "the {x} broke into pieces", "the {x} went into the bin"),
        "garden": ("the {x} was forgotten outdoors", "the {x} filled with rain", "birds drank from the {x}"),
        "dust": ("nobody touched the {x} for years", "dust covered the {x}", "the maid wiped the {x}"),
        "prize": ("the {x} won a prize", "many guests admired the {x}", "the {x} was sold for gold"),
        "stove": ("the {x} stood near the fire", "the {x} grew very hot", "the {x} burned a finger"),
    },
    "clothes": {
        "mud": ("the {x} fell into the mud", "the {x} became dirty", "the {x} needed a wash"),
        "moths": ("hungry moths found the {x}", "the {x} got tiny holes", "the {x} was mended with thread"),
        "wind": ("the storm carried away the {x}", "the {x} hung in a tree", "a boy climbed up for the {x}"),
        "sale": ("the price of the {x} was lowered", "a crowd wanted the {x}", "the {x} was gone by noon"),
        "sun": ("the {x} lay in the sunshine", "the {x} faded badly", "the {x} ended as a rag"),
    },
    "tools": {
        "rust": ("the {x} stayed in a damp room", "the {x} began to rust", "oil was rubbed on the {x}"),
        "ice": ("the {x} dropped through the ice", "the {x} sank deep down", "divers searched for the {x}"),
        "loan": ("a neighbor borrowed the {x}", "the hook of the {x} was empty", "no one could work without the {x}"),
        "thief": ("a thief spotted the {x}", "the {x} was stolen", "the police listed the {x}"),
        "stone": ("the {x} hit a hard rock", "the handle of the {x} cracked", "the smith repaired the {x}"),
    },
    "vehicles": {
        "slope": ("the brake of the {x} failed", "the {x} rolled downhill", "the {x} crashed against a wall"),
        "load": ("too many bags lay on the {x}", "the {x} could not move", "strong men pushed the {x}"),
        "paint": ("children splashed ink on the {x}", "the {x} looked funny", "everybody laughed at the {x}"),
        "snow": ("heavy snow came over the {x}", "the {x} was buried", "the owner dug out the {x}"),
        "race": ("the {x} was tuned and polished", "the {x} was the fastest", "the {x} received a ribbon"),
    },
}
PERSON_PATTERNS: dict[str, tuple[str, str, str]] = {
    "map": ("{x} forgot the map", "{x} took a wrong turn", "{x} arrived after dark"),
    "pie": ("{x} ate too much pie", "{x} felt sick", "{x} stayed in bed"),
    "song": ("{x} practiced every day", "{x} played without mistakes", "{x} was cheered loudly"),
    "seeds": ("{x} planted seeds in spring", "{x} had ripe tomatoes", "{x} cooked a pot of sauce"),
    "cold": ("{x} ran around without a jacket", "{x} caught a cold", "{x} drank warm tea"),
    "film": ("{x} watched a film until midnight", "{x} slept too long", "{x} missed the train"),
    "wallet": ("{x} picked up a lost wallet", "{x} called the police", "{x} got a reward"),
    "joke": ("{x} shouted in the hall", "{x} woke the baby", "{x} sang a lullaby"),
    "guitar": ("{x} saved coins for a year", "{x} bought a guitar", "{x} joined a band"),
    "gate": ("{x} left the gate open", "{x} lost three goats", "{x} searched the hills"),
    "toast": ("{x} burned the toast", "{x} opened all windows", "{x} shivered in the kitchen"),
    "lie": ("{x} cheated a friend", "{x} felt ashamed", "{x} sent an apology"),
    "stars": ("{x} read about stars", "{x} built a telescope", "{x} discovered a comet"),
    "nail": ("{x} stepped on a nail", "{x} limped home", "{x} put on a bandage"),
    "record": ("{x} broke the school record", "{x} became famous", "{x} signed many photos"),
    "letter": ("{x} spilled milk on the letter", "{x} wrote it again", "{x} posted it late"),
    "thunder": ("{x} heard thunder", "{x} hurried under a roof", "{x} kept dry"),
    "lunch": ("{x} skipped lunch", "{x} was very hungry", "{x} emptied the fridge"),
    "help": ("{x} helped an old farmer", "{x} received fresh apples", "{x} baked a cake"),
    "screen": ("{x} stared at the screen", "{x} got a headache", "{x} visited the doctor"),
}


def all_strings() -> list[str]:
    """Every word and event of this file, for the vocabulary."""
    strings = [*PEOPLE, *TOWNS, *REGIONS, *RIVERS, *PRODUCTS, *JOBS, *FOODS, *COLOURS]
    for table in (ANIMALS, OBJECTS):
        for name, values in table.items():
            strings += [name, *values]
    for verbs in VERBS.values():
        strings += verbs
    for patterns in OBJECT_PATTERNS.values():
        for events in patterns.values():
            strings += events
    for events in PERSON_PATTERNS.values():
        strings += events
    return strings
