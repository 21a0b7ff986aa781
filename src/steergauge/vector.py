"""A steering vector: one direction at one site, with everything needed to redo it.

File format `steergauge.vector` version 1: a safetensors file with one float32 tensor
`direction` of shape (d_model,), stored as extracted and never normalised, and the
site and provenance as JSON in its metadata. Nothing in it is executed on loading.

The site is always the residual stream *after* block `layer` (0-based), before any
final norm; it is read and written at the same place.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from steergauge.errors import (
    CorruptVector,
    NonFiniteVector,
    NoSuchFile,
    ShapeMismatch,
    WrongModel,
    ZeroVector,
)
from steergauge.split import LanguageModel
from steergauge.types import Direction

FORMAT = "steergauge.vector"
FORMAT_VERSION = 1
OPERATOR = "add"
DOSE_UNIT = "alpha multiplies the direction as stored"


@dataclass(frozen=True, slots=True)
class Site:
    """The residual stream after block `layer` (0-based), before any final norm."""

    layer: int

    def __str__(self) -> str:
        return f"output of block {self.layer}"


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a vector came from. Empty fields are unknown, not default.

    Attributes:
        method: extraction method, such as `mean_difference`.
        position: the token position rule that was read, such as `last`.
        model: Hugging Face id or folder.
        revision: commit of the model, where known.
        fingerprint: hash of the model's shapes and sampled weights.
        chat_template: hash of the chat template; empty if texts were taken raw.
        pairs: hash of the contrast pairs.
        num_pairs: how many pairs.
        seed: seed of the pairs' selection.
        median_norm: median norm of the streams that were read.
        parent: what a derived vector (a control, say) was made from.
        versions: versions of the libraries at work.
    """

    method: str = ""
    position: str = ""
    model: str = ""
    revision: str = ""
    fingerprint: str = ""
    chat_template: str = ""
    pairs: str = ""
    num_pairs: int = 0
    seed: int = 0
    median_norm: float = 0.0
    parent: str = ""
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class SteeringVector:
    """A direction (d_model,) at a site; `alpha` multiplies it as stored.

    Raises:
        NonFiniteVector: the direction holds NaN or infinity.
        ShapeMismatch: it is not one-dimensional.
    """

    direction: Direction
    site: Site
    provenance: Provenance = Provenance()

    def __post_init__(self) -> None:
        """Refuse what can never be a direction."""
        if self.direction.ndim != 1:
            raise ShapeMismatch(
                f"a steering vector has one axis, this one has shape "
                f"{tuple(self.direction.shape)}.",
                remedy="Select one layer and one position first.",
            )
        if not bool(torch.isfinite(self.direction).all()):
            bad = int((~torch.isfinite(self.direction)).sum())
            raise NonFiniteVector(
                f"{bad} of the steering vector's {len(self.direction)} entries are "
                "NaN or infinite.",
                cause="It was extracted in half precision and overflowed, or the "
                "file was written by a run that had diverged.",
                remedy="Extract it again in float32.",
            )

    @property
    def norm(self) -> float:
        """Euclidean norm of the direction."""
        return float(torch.linalg.vector_norm(self.direction.double()))

    def with_direction(self, direction: Direction, parent: str) -> "SteeringVector":
        """The same site with another direction, `parent` saying what it was made of."""
        provenance = dataclasses.replace(self.provenance, parent=parent)
        return SteeringVector(direction, self.site, provenance)

    def save(self, path: str | Path) -> Path:
        """Write the vector with its provenance; an existing file is replaced whole."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "site": dataclasses.asdict(self.site) | {"stream": "block output"},
            "operator": OPERATOR,
            "dose_unit": DOSE_UNIT,
            "provenance": dataclasses.asdict(self.provenance),
        }
        metadata = {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "record": json.dumps(record, sort_keys=True),
        }
        temporary = target.with_name(target.name + ".part")
        tensor = self.direction.detach().float().cpu().contiguous()
        save_file({"direction": tensor}, temporary, metadata=metadata)
        temporary.replace(target)
        return target

    def check_fits(self, lm: LanguageModel, *, other_model: bool = False) -> None:
        """Raise unless the vector can be added to this model's stream.

        Args:
            lm: the model to be steered.
            other_model: accept a vector that was extracted from another model.

        Raises:
            ShapeMismatch: another width than the stream's.
            LayerOutOfRange: the model has no such block.
            ZeroVector: there is nothing to add.
            WrongModel: extracted from another model, by fingerprint.
        """
        origin = self.provenance.model or "an unknown model"
        if len(self.direction) != lm.d_model:
            raise ShapeMismatch(
                f"the steering vector is {len(self.direction)} wide, the residual "
                f"stream of {lm.name} is {lm.d_model} wide.",
                cause=f"It was extracted from {origin} (see vector.provenance).",
                remedy="Extract it again from this model.",
            )
        lm.check_layer(self.site.layer)
        if self.norm == 0:
            raise ZeroVector(
                "the steering vector is zero, so it has no direction to audit.",
                cause="The two sides of the contrast pairs are the same texts.",
                remedy="Check the pairs.",
            )
        known = self.provenance.fingerprint
        if known and known != lm.fingerprint and not other_model:
            raise WrongModel(
                f"the steering vector was extracted from {origin} (fingerprint "
                f"{known}); {lm.name} has fingerprint {lm.fingerprint}.",
                cause="The weights differ: another model, checkpoint or finetune.",
                remedy="Extract it again from this model, or accept it on purpose "
                "with --other-model (Python: other_model=True).",
            )


def load_vector(path: str | Path) -> SteeringVector:
    """Read a vector written by `SteeringVector.save`.

    Raises:
        NoSuchFile: there is no such file.
        CorruptVector: it is truncated, or of another format.
        NonFiniteVector: it holds NaN or infinity.
    """
    source = Path(path)
    if not source.is_file():
        raise NoSuchFile(
            f"there is no vector file {source}.",
            remedy="Make one with `steergauge extract ... --out FILE`.",
        )
    try:
        with safe_open(source, framework="pt") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            direction = file.get_tensor("direction") if "direction" in names else None
    except SafetensorError as error:
        raise CorruptVector(
            f"{source} cannot be read as safetensors: {error}",
            cause="The file is truncated, or is of another kind (.pt, .gguf).",
            remedy="Copy it again, or extract the vector again.",
        ) from error
    return _assemble(source, metadata, direction)


def _assemble(
    source: Path, metadata: dict[str, str], direction: torch.Tensor | None
) -> SteeringVector:
    version = metadata.get("format_version", "none")
    if metadata.get("format") != FORMAT or direction is None:
        raise CorruptVector(
            f"{source} is a safetensors file, but no steering vector of ours: its "
            f"format is {metadata.get('format', 'not given')!r}.",
            cause="It was written by another tool, or is a model's weights.",
            remedy="Build SteeringVector(direction, Site(layer)) in Python and save "
            "it; then the site is stated by you and not guessed.",
        )
    if version != str(FORMAT_VERSION):
        raise CorruptVector(
            f"{source} has format version {version}, this steergauge reads "
            f"{FORMAT_VERSION}.",
            remedy="Upgrade steergauge.",
        )
    try:
        record: dict[str, Any] = json.loads(metadata["record"])
        site = Site(int(record["site"]["layer"]))
        provenance = Provenance(**record["provenance"])
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptVector(
            f"the provenance in {source} cannot be read: {error}.",
            cause="The file was edited or damaged.",
            remedy="Extract the vector again.",
        ) from error
    return SteeringVector(direction, site, provenance)
