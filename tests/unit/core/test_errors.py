"""The error tree: unique codes, known type names, and exceptions that survive a trip between processes."""

from __future__ import annotations

import pickle

import pytest

from mixpeek_ray.core import errors
from mixpeek_ray.core.errors import MixpeekError

# The names that published clients switch on.
KNOWN_TYPES = {
    "BadRequestError",
    "UnauthorizedError",
    "ForbiddenError",
    "QuotaExceededError",
    "NotFoundError",
    "AlreadyExistsError",
    "ValidationError",
    "TooManyRequestsError",
    "InferenceServiceUnavailableError",
    "InternalServerError",
}


def _tree(cls: type[MixpeekError]) -> list[type[MixpeekError]]:
    return [cls] + [found for child in cls.__subclasses__() for found in _tree(child)]


ALL_ERRORS = [cls for cls in _tree(MixpeekError) if cls.__module__ == errors.__name__]
EVERY_ERROR = pytest.mark.parametrize("cls", ALL_ERRORS, ids=lambda cls: cls.__name__)


def test_each_error_has_a_code_of_its_own():
    codes = [cls.code for cls in ALL_ERRORS]
    assert len(codes) == len(set(codes))


@EVERY_ERROR
def test_mapping_to_http_is_complete(cls):
    assert cls.error_type in KNOWN_TYPES
    assert 400 <= cls.status < 600
    assert cls is MixpeekError or "code" in vars(cls), "a subclass without a code of its own looks like its parent"


@EVERY_ERROR
def test_tree_in_the_docstring_is_true(cls):
    lines = [line.strip("│├└─ ") for line in (errors.__doc__ or "").splitlines()]
    found = [line.split()[-2:] for line in lines if line.split()[:1] == [cls.__name__]]
    assert found == [[str(cls.status), cls.code]]


@EVERY_ERROR
def test_pickle_rebuilds_it_whole(cls):
    error = pickle.loads(pickle.dumps(cls("gone: \u202e", field="name", limit=50)))
    assert type(error) is cls
    assert (str(error), error.message) == ("gone: \u202e", "gone: \u202e")
    assert error.details == {"field": "name", "limit": 50}


def test_errors_are_also_what_python_programmers_catch():
    assert issubclass(errors.ModelNotFoundError, LookupError)
    assert issubclass(errors.InvalidNameError, ValueError)
    assert issubclass(errors.InvalidMultipartError, ValueError)
