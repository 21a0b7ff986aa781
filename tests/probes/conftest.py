"""Classifiers are trained once for all tests of probes."""

import pytest
from tests.probes import classifiers


@pytest.fixture(scope="session")
def manners(tmp_path_factory):
    """Folder of a classifier: informal for "yo", formal for "sir"."""
    return classifiers.manners(tmp_path_factory.mktemp("models") / "manners")


@pytest.fixture(scope="session")
def inference(tmp_path_factory):
    """Folder of a model of inference about these two words."""
    return classifiers.inference(tmp_path_factory.mktemp("models") / "inference")
