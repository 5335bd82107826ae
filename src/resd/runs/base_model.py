"""What the base model's own files say of it: its name on the hub, and its licence. No network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# First words of a licence file, and its name on the hub.
_LICENCES = {
    "apache license": "apache-2.0",
    "mit license": "mit",
}


@dataclass(frozen=True)
class BaseModel:
    """A base model.

    Attributes:
        name: for people; the last part of a directory.
        hub_id: `owner/name`, where that is known.
        licence: its name on the hub, where that is known.
        said: the licence in a sentence.
    """

    name: str
    hub_id: str | None
    licence: str | None
    said: str


def look_at(path: str) -> BaseModel:
    """A model by `model.path`: `lab`, `smol`, a directory, or a hub id."""
    if path == "lab":
        said = "The lab's base model comes with resd, under Apache-2.0."
        return BaseModel("The lab's base model (1 million parameters)", None, "apache-2.0", said)
    if path == "smol":
        path = "HuggingFaceTB/SmolLM2-135M-Instruct"
        return BaseModel(path, path, "apache-2.0", f"{path} is under Apache-2.0.")
    place = Path(path)
    if not place.is_dir():
        return _known(path, path, _front_matter(_cached_card(path)).get("license"), path)
    front = _front_matter(place / "README.md")
    hub_id = front.get("base_model")
    hub_id = hub_id if isinstance(hub_id, str) and hub_id.count("/") == 1 else None
    licence = front.get("license") or _of_config(place) or _of_file(place)
    return _known(place.name, hub_id, licence, place.name)


def _known(name: str, hub_id: str | None, licence: Any, where: str) -> BaseModel:
    if not isinstance(licence, str):
        said = f"No file of {where} names the licence of the base model: look where it came from."
        return BaseModel(name, hub_id, None, said)
    return BaseModel(name, hub_id, licence, f"The files of {where} name {licence} for the base.")


def _cached_card(hub_id: str) -> Path:
    """A hub model's card, if it was ever loaded; nothing is asked of the network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, "README.md")
    return Path(found) if isinstance(found, str) else Path()


def _front_matter(card: Path) -> dict[str, Any]:
    """What stands at the head of a model card; nothing if it makes no sense."""
    from huggingface_hub import metadata_load

    try:
        return dict(metadata_load(card) or {}) if card.is_file() else {}
    except Exception:  # another's file fails in many ways
        return {}


def _of_config(place: Path) -> Any:
    try:
        return json.loads((place / "config.json").read_text(encoding="utf-8")).get("license")
    except (OSError, ValueError, AttributeError):
        return None


def _of_file(place: Path) -> str | None:
    """The licence whose text lies in the directory; `other` if it is not known."""
    files = sorted(f for f in place.iterdir() if f.name.upper().startswith(("LICENSE", "LICENCE")))
    for file in files:
        try:
            head = file.read_text(encoding="utf-8", errors="replace")[:500].casefold()
        except OSError:
            continue
        return next((name for words, name in _LICENCES.items() if words in head), "other")
    return None
