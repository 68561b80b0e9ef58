# SPDX-License-Identifier: Apache-2.0
"""What each model can be in a room, and what each kind of room holds.

Roles come from the catalogue's names, categories and sizes, so that all libraries are used without
a list of models by hand.
"""

from __future__ import annotations

import re
from collections import defaultdict

from omnistream_ros.training.assets import Asset, FurnitureLibrary

_INDOORS = {"Office", "Bedroom", "Living room", "Kitchen", "Bathroom", "Miscellaneous", "Lights"}
_PLANT = (
    r"plant|ficus|yucca|bonsai|bamboo|orchid|flower|tulip|lily|cactus|spathiphyllum|christmas tree"
)


def roles(asset: Asset) -> set[str]:
    """The parts an object can play in a room; empty for what does not belong indoors."""
    name, (width, depth, height) = asset.name.lower(), asset.size
    indoors = asset.category in _INDOORS
    if max(width, depth) > 3.2 or height > 2.5:
        return set()
    found = set()

    def named(pattern: str) -> bool:
        return re.search(pattern, name) is not None

    if (
        asset.elevation > 1.6
        and asset.category == "Lights"
        and named(r"hang|lamp|fluor|chand|pend")
    ):
        return {"ceiling"}
    if asset.elevation > 0.02:
        if asset.category == "Kitchen" and asset.elevation > 1.0:
            found.add("upper unit")
        elif indoors and depth < 0.45 and asset.elevation < 2.3 and not named("lamp|window|blind"):
            found.add("on wall")
        return found
    if named(r"\bbed\b|crib|futon$") and width > 0.55 and depth > 0.8:
        found.add("bed")
    elif named(r"sofa|couch|day bed") and width > 1.0:
        found.add("sofa")
    elif named(r"armchair|puff") or name == "rocking chair":
        found.add("armchair")
    elif named(r"chair|stool|class seat") and not named("wheel|ottoman|high|piano"):
        found.add("chair")
    elif named("table") and not named(
        "football|tennis|pool|bedside|changing|dressing|tablet|lamp|fan"
    ):
        found.add("table" if height > 0.6 and min(width, depth) > 0.5 else "low table")
        if height > 0.6 and 0.9 < width < 2.1:
            found.add("desk")
    elif named(r"desk\b") and not named("lamp|chair") and height < 1.3:
        found.add("desk")
    elif named(r"bedside"):
        found.add("bedside")
    elif (
        indoors
        and height > 0.4
        and width > 0.35
        and named(
            r"wardrobe|bookcase|shel[fv]|cupboard|cabinet|dresser|chest|drawers|tv stand|locker|"
            r"trun|safe|piano|fireplace|television|living room|^box$"
        )
        and asset.category != "Kitchen"
    ):
        found.add("storage")
    elif asset.category == "Kitchen" and height > 0.5 and width * depth > 0.2:
        found.add("kitchen unit")
    elif asset.category == "Bathroom" and height > 0.25 and width > 0.3 and depth > 0.25:
        found.add("bath")
    elif named(_PLANT) and height > 0.45:
        found.add("plant")
    elif asset.category == "Characters":
        found.add("living being")
    elif asset.category == "Lights" and 1.0 < height < 2.2:
        found.add("floor lamp")
    elif named(r"\brug|carpet|tatami|bathmat|doormat") and height < 0.1:
        found.add("rug")
    elif (
        asset.category in ("Miscellaneous", "Bedroom", "Exterior", "Vehicles")
        and 0.2 < height < 2.2
        and width * depth > 0.02
        and max(width, depth) < 2.0
    ):
        found.add("thing")
    if (
        indoors
        and max(width, depth) < 0.65
        and height < 0.65
        and not found & {"rug", "chair", "storage"}
    ):
        found.add("small")
    return found


# Roles whose tops carry other things.
CARRIERS = {
    "table",
    "low table",
    "desk",
    "storage",
    "kitchen unit",
    "bedside",
    "bed",
    "sofa",
    "box",
}

# What a kind of room holds: (role, where, fewest, most). "set" is a table with chairs around it,
# "row" a run of units side by side along a wall, "desk" a desk with its chair.
PLANS: dict[str, tuple[tuple[str, str, int, int], ...]] = {
    "living room": (
        ("sofa", "wall", 1, 2),
        ("storage", "wall", 1, 4),
        ("low table", "free", 1, 2),
        ("armchair", "free", 0, 3),
        ("table", "set", 0, 1),
        ("plant", "wall", 0, 3),
        ("floor lamp", "wall", 0, 2),
        ("thing", "free", 0, 3),
        ("living being", "free", 0, 1),
    ),
    "bedroom": (
        ("bed", "wall", 1, 2),
        ("bedside", "wall", 0, 2),
        ("storage", "wall", 1, 4),
        ("desk", "desk", 0, 1),
        ("armchair", "free", 0, 1),
        ("plant", "wall", 0, 2),
        ("thing", "free", 0, 4),
        ("living being", "free", 0, 1),
    ),
    "kitchen": (
        ("kitchen unit", "row", 3, 8),
        ("kitchen unit", "row", 0, 5),
        ("table", "set", 0, 1),
        ("chair", "free", 0, 2),
        ("thing", "free", 0, 2),
        ("plant", "wall", 0, 1),
        ("living being", "free", 0, 1),
    ),
    "office": (
        ("desk", "desk", 1, 5),
        ("table", "set", 0, 1),
        ("storage", "wall", 1, 5),
        ("plant", "wall", 0, 2),
        ("armchair", "free", 0, 1),
        ("thing", "free", 0, 3),
        ("living being", "free", 0, 2),
    ),
    "bathroom": (
        ("bath", "wall", 3, 6),
        ("thing", "wall", 0, 2),
        ("storage", "wall", 0, 1),
    ),
    "dining room": (
        ("table", "set", 1, 2),
        ("storage", "wall", 1, 4),
        ("plant", "wall", 0, 2),
        ("thing", "free", 0, 2),
        ("floor lamp", "wall", 0, 1),
        ("living being", "free", 0, 1),
    ),
    "corridor": (
        ("storage", "wall", 0, 4),
        ("chair", "wall", 0, 3),
        ("plant", "wall", 0, 2),
        ("thing", "wall", 0, 3),
        ("living being", "free", 0, 1),
    ),
    "storage room": (
        ("storage", "wall", 2, 7),
        ("thing", "wall", 3, 9),
        ("box", "wall", 3, 10),
        ("table", "free", 0, 2),
        ("box", "free", 0, 4),
    ),
    "classroom": (
        ("desk", "desk", 2, 8),
        ("table", "set", 1, 3),
        ("storage", "wall", 0, 4),
        ("thing", "free", 0, 3),
        ("living being", "free", 0, 3),
    ),
}


def assets_by_role(library: FurnitureLibrary) -> dict[str, list[Asset]]:
    """Models by role."""
    by_role: dict[str, list[Asset]] = defaultdict(list)
    for asset in library.assets.values():
        for role in roles(asset):
            by_role[role].append(asset)
    return by_role
