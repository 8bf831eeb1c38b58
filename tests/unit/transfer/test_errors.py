"""Guards: an error that loses its type or text when it crosses a process, or a code that two errors share."""

import pickle

import pytest

from transfer import errors
from transfer.errors import ERROR_TYPES, BadMedia, ProtocolError, RetryableError, TerminalError, error_from_code


@pytest.mark.parametrize("error_type", ERROR_TYPES.values())
def test_crosses_processes_by_pickle_and_by_code(error_type: type[errors.TriptychError]) -> None:
    error = error_type("what happened")
    for copy in (pickle.loads(pickle.dumps(error)), error_from_code(error.code, error.message)):  # noqa: S301
        assert type(copy) is error_type
        assert copy.message == str(copy) == "what happened"


def test_every_error_of_the_module_has_its_own_code_in_the_table() -> None:
    defined = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert {kind.code: kind for kind in defined} == ERROR_TYPES
    assert len(defined) == len(ERROR_TYPES)


def test_the_drawing_names_every_error_and_code() -> None:
    assert errors.__doc__ is not None
    for code, error_type in ERROR_TYPES.items():
        assert error_type.__name__ in errors.__doc__
        if error_type not in (RetryableError, TerminalError, errors.TriptychError):
            assert code in errors.__doc__


def test_an_unknown_code_is_named_and_not_swallowed() -> None:
    error = error_from_code("from_the_future", "details")
    assert isinstance(error, ProtocolError)
    assert "from_the_future" in error.message and "details" in error.message


def test_no_error_is_both_retryable_and_terminal() -> None:
    for error_type in ERROR_TYPES.values():
        assert not (issubclass(error_type, RetryableError) and issubclass(error_type, TerminalError))
    assert issubclass(BadMedia, ValueError)
