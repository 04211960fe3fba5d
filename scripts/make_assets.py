"""Write the weather data set that ships with the package: facts in, a report out.

Pairs of reports, for training on preferences, are made of it: one that is right, and
the same with a fact told wrongly.

    python scripts/make_assets.py            # writes jaxpeft/assets/weather/
    python scripts/make_assets.py --out DIR  # writes elsewhere

The standard library alone is used and the seed is fixed, so the files come out the
same, byte for byte, on any machine. Some pairs of place and sky are held out: they
make up the evaluation set and never occur in training, so that a model has to combine
what it learned about each.
"""

import argparse
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SEED = 20_261
TRAIN_RECORDS = 1500
EVAL_RECORDS = 150
TRAIN_PAIRS, EVAL_PAIRS = 300, 60
HELD_OUT_PER_SKY = 2
INSTRUCTION = "Write a short weather report from these facts."

PLACES = (
    "Athens, Berlin, Boston, Bristol, Chicago, Dallas, Denver, Dublin, Geneva, "
    "Hamburg, Leeds, London, Madrid, Milan, Munich, Oslo, Oxford, Paris, Prague, Rome, "
    "Tokyo, Vienna, Warsaw, York"
).split(", ")
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
PARTS = ("morning", "afternoon", "evening")
STRENGTHS = ("light", "strong", "fresh", "steady")
DIRECTIONS = ("north", "south", "east", "west")


@dataclass(frozen=True)
class Sky:
    """One kind of weather: how it is said, what it is like, what to do about it."""

    noun: str
    adjective: str
    highs: range
    tips: tuple[str, ...]


SKIES = {
    "clear": Sky(
        "clear skies",
        "clear",
        range(8, 29),
        ("It is a good time to go outside.", "Enjoy the view."),
    ),
    "sun": Sky(
        "plenty of sun",
        "sunny",
        range(15, 36),
        ("Remember to bring a hat.", "Drink plenty of water."),
    ),
    "clouds": Sky(
        "a lot of clouds",
        "cloudy",
        range(6, 25),
        ("It should stay dry.", "There is no need to stay inside."),
    ),
    "light rain": Sky(
        "some light rain",
        "a little wet",
        range(5, 22),
        ("Take a coat with you.", "A light coat will be enough."),
    ),
    "heavy rain": Sky(
        "heavy rain",
        "very wet",
        range(5, 20),
        ("Stay inside if you can.", "Watch out for water on the roads."),
    ),
    "snow": Sky(
        "snow",
        "white with snow",
        range(0, 4),
        ("Drive slowly.", "Wear warm clothes."),
    ),
    "fog": Sky(
        "thick fog",
        "grey and foggy",
        range(2, 14),
        ("Turn on the lights of your car.", "It will be hard to see far."),
    ),
    "storm": Sky(
        "a storm",
        "stormy",
        range(10, 27),
        ("Close your windows.", "Keep away from tall trees."),
    ),
}

# Each pattern comes with the high and without it: a fact that is not given must not
# be reported.
OPENINGS = (
    (
        "Expect {noun} in {place} on {time}, with a high of {high} degrees.",
        "Expect {noun} in {place} on {time}.",
    ),
    (
        "{time} in {place} will be {adjective}, and it will reach {high} degrees.",
        "{time} in {place} will be {adjective}.",
    ),
    (
        "On {time}, {place} will see {noun} and temperatures up to {high} degrees.",
        "On {time}, {place} will see {noun}.",
    ),
    (
        "It will be {adjective} in {place} on {time}. The high will be {high} degrees.",
        "It will be {adjective} in {place} on {time}.",
    ),
)
WINDS = (
    "A {strength} wind will blow from the {direction}.",
    "The wind will be {strength} and come from the {direction}.",
    "There will be a {strength} wind from the {direction}.",
)


def held_out_pairs(rng: random.Random) -> set[tuple[str, str]]:
    """The (place, sky) pairs kept for evaluation, every place at most once."""
    places = iter(rng.sample(PLACES, HELD_OUT_PER_SKY * len(SKIES)))
    return {(next(places), sky) for sky in SKIES for _ in range(HELD_OUT_PER_SKY)}


def record(place: str, sky: str, rng: random.Random) -> dict[str, str]:
    """One alpaca record: facts drawn around `place` and `sky`, and their report."""
    kind = SKIES[sky]
    time = f"{rng.choice(DAYS)} {rng.choice(PARTS)}"
    facts = {"place": place, "time": time, "sky": sky}
    with_high, without_high = rng.choice(OPENINGS)
    if rng.random() < 0.7:
        facts["high"] = str(rng.choice(kind.highs))
    opening = with_high if "high" in facts else without_high
    sentences = [opening.format(noun=kind.noun, adjective=kind.adjective, **facts)]
    if rng.random() < 0.6:
        strength, direction = rng.choice(STRENGTHS), rng.choice(DIRECTIONS)
        facts["wind"] = f"{strength} from the {direction}"
        wind = rng.choice(WINDS)
        sentences.append(wind.format(strength=strength, direction=direction))
    if rng.random() < 0.5:
        facts["tip"] = "yes"
        sentences.append(rng.choice(kind.tips))
    return {
        "instruction": INSTRUCTION,
        "input": ", ".join(f"{name}: {value}" for name, value in facts.items()),
        "output": " ".join(sentences),
    }


def records(
    pairs: Iterable[tuple[str, str]], count: int, rng: random.Random
) -> list[dict[str, str]]:
    """`count` records over `pairs`, no two with the same facts, the pairs in turn."""
    pairs = sorted(pairs)
    found: dict[str, dict[str, str]] = {}
    while len(found) < count:
        drawn = record(*pairs[len(found) % len(pairs)], rng)
        found.setdefault(drawn["input"], drawn)
    result = list(found.values())
    rng.shuffle(result)
    return result


def wrong(row: dict[str, str], rng: random.Random) -> str:
    """The report of a record with the place, the day or the sky told wrongly."""
    place, time, sky = (
        fact.partition(": ")[2] for fact in row["input"].split(", ")[:3]
    )
    told = row["output"]
    fact = rng.choice(("place", "day", "sky"))
    if fact == "place":
        return told.replace(place, rng.choice([p for p in PLACES if p != place]))
    if fact == "day":
        day = time.split()[0]
        return told.replace(day, rng.choice([d for d in DAYS if d != day]))
    other = SKIES[rng.choice([name for name in SKIES if name != sky])]
    told = told.replace(SKIES[sky].noun, other.noun)
    return told.replace(SKIES[sky].adjective, other.adjective)


def pairs_of(
    rows: list[dict[str, str]], count: int, rng: random.Random
) -> list[dict[str, str]]:
    """Pairs of the first `count` records: the report, and a wrong one."""
    return [
        {
            "instruction": row["instruction"],
            "input": row["input"],
            "chosen": row["output"],
            "rejected": wrong(row, rng),
        }
        for row in rows[:count]
    ]


def write(path: Path, rows: list[dict[str, str]]) -> None:
    """A JSON list with a record a line, so that changes can be read in a diff."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8", newline="\n")


def main() -> None:
    """Write the four files, in two folders of the directory asked for."""
    default = Path(__file__).parent.parent / "jaxpeft" / "assets"
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=default, help="output directory")
    out = parser.parse_args().out
    out, of_pairs = out / "weather", out / "weather_pairs"
    for folder in (out, of_pairs):
        folder.mkdir(parents=True, exist_ok=True)

    rng = random.Random(SEED)
    held_out = held_out_pairs(rng)
    training = {(place, sky) for place in PLACES for sky in SKIES} - held_out
    train = records(training, TRAIN_RECORDS, rng)
    evaluation = records(held_out, EVAL_RECORDS, rng)
    write(out / "train.json", train)
    write(out / "eval.json", evaluation)
    write(of_pairs / "train.json", pairs_of(train, TRAIN_PAIRS, rng))
    write(of_pairs / "eval.json", pairs_of(evaluation, EVAL_PAIRS, rng))


if __name__ == "__main__":
    main()
