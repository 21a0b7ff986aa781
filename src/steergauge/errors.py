"""Every way steergauge says no.

::

    SteergaugeError
    |-- ModelError                the model cannot be audited as it is
    |   |-- CannotLoadModel       no such model, or a broken folder
    |   |-- NoTokenizer           a model without a tokenizer
    |   |-- UnknownArchitecture   the list of blocks was not found
    |   |-- NotTheSuffix          suffix(prefix(x)) != model(x)
    |   `-- NonFiniteLogits       steering drove the logits to inf or NaN
    |-- VectorError               a steering vector cannot be used
    |   |-- CorruptVector         the file is damaged or of another format
    |   |-- ShapeMismatch         its width is not the stream's
    |   |-- NonFiniteVector       it holds NaN or infinity
    |   |-- ZeroVector            it has no direction
    |   `-- WrongModel            it was extracted from another model
    |-- InputError                what the user gave cannot be used
    |   |-- LayerOutOfRange
    |   |-- BadPairs              names the file and the line
    |   |-- BadPrompts            names the file and the line
    |   |-- BadTrait              unknown trait or malformed trait file
    |   |-- BadProbe              malformed probe file or callable
    |   |-- BadSpec               unknown key or impossible value of a run file
    |   `-- NoSuchFile
    |-- EngineError               another engine is missing, or did not do as planned
    |-- ProbeRefused              its AUC on labelled texts is too low to judge by
    `-- StoreError                a run folder cannot be read or resumed

An error says what was asked, what was found, the likeliest cause and what to do.
"""


class SteergaugeError(Exception):
    """What went wrong, why most likely, and what to do about it.

    Args:
        found: what was asked and what was found, with values and shapes.
        cause: the likeliest cause, a full sentence; may be empty.
        remedy: what to do, a full sentence; may be empty.
    """

    def __init__(self, found: str, *, cause: str = "", remedy: str = "") -> None:
        self.found = found
        self.cause = cause
        self.remedy = remedy
        super().__init__(" ".join(part for part in (found, cause, remedy) if part))


class ModelError(SteergaugeError):
    """The model cannot be audited as it is."""


class CannotLoadModel(ModelError):
    """No such model, or its folder is broken."""


class NoTokenizer(ModelError):
    """The model comes without a tokenizer."""


class UnknownArchitecture(ModelError):
    """The list of decoder blocks was not found."""


class NotTheSuffix(ModelError):
    """suffix(prefix(x)) differs from model(x): the split is wrong for this model."""


class NonFiniteLogits(ModelError):
    """Steering drove the logits to infinity or NaN."""


class VectorError(SteergaugeError):
    """A steering vector cannot be used."""


class CorruptVector(VectorError):
    """The file is damaged, or is no steergauge vector."""


class ShapeMismatch(VectorError):
    """The vector's width is not the residual stream's."""


class NonFiniteVector(VectorError):
    """The vector holds NaN or infinity."""


class ZeroVector(VectorError):
    """The vector is zero and so has no direction."""


class WrongModel(VectorError):
    """The vector was extracted from another model."""


class InputError(SteergaugeError):
    """What the user gave cannot be used."""


class LayerOutOfRange(InputError):
    """The model has no such block."""


class BadPairs(InputError):
    """A file of contrast pairs is empty or malformed."""


class BadPrompts(InputError):
    """A file of prompts is empty or malformed."""


class BadTrait(InputError):
    """An unknown trait, or a malformed trait file."""


class BadProbe(InputError):
    """A malformed probe file or callable."""


class BadSpec(InputError):
    """An unknown key or an impossible value in a run's specification."""


class NoSuchFile(InputError):
    """A file that does not exist or cannot be read."""


class EngineError(SteergaugeError):
    """Another engine is missing, cannot be opened, or did not do what was planned."""


class ProbeRefused(SteergaugeError):
    """The probe's AUC on labelled texts is too low to judge by."""


class StoreError(SteergaugeError):
    """A run's folder cannot be read or resumed."""
