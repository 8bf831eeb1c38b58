"""Guards: a public name that is missing from `__all__`, and settings that cannot work."""

import pytest

import transfer
from transfer import ClientSettings, ServerSettings


def test_all_is_sorted_complete_and_real() -> None:
    public = {
        name for name, value in vars(transfer).items() if not name.startswith("_") and type(value).__name__ != "module"
    }
    assert public == set(transfer.__all__)
    assert len(transfer.__all__) == len(set(transfer.__all__))


@pytest.mark.parametrize("bind_host", ["0.0.0.0", "::", "*", "", "localhost"])
def test_a_server_binds_a_concrete_address_only(bind_host: str) -> None:
    with pytest.raises(ValueError):
        ServerSettings(bind_host=bind_host)


def test_limits_are_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        ServerSettings(lease_s=0)
    with pytest.raises(ValueError, match="positive"):
        ServerSettings(max_parked=0)
    with pytest.raises(ValueError, match="positive"):
        ClientSettings(liveness_s=0)
