"""Keys are read whole or not at all, and nothing that is said about them repeats one."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs import ApiKey, ConfigError, parse_config, read_api_keys

FIRST, SECOND, THIRD = "first-key-0123456789", "second:key=0123456789", "third-key-0123456789"


def test_names_may_have_several_keys_and_keys_may_hold_colons(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# the team's\nred:{FIRST}\n\n  blue:{SECOND}  \nred:{THIRD}\n")
    assert read_api_keys(str(file)) == (ApiKey("red", FIRST), ApiKey("blue", SECOND), ApiKey("red", THIRD))


def test_the_environment_is_asked_only_where_the_settings_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_API_KEYS", f"red:{FIRST}")
    assert read_api_keys(None) == ()
    assert read_api_keys("environment") == (ApiKey("red", FIRST),)


def test_a_source_without_keys_is_an_error_and_not_an_open_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRIPTYCH_API_KEYS", raising=False)
    with pytest.raises(ValueError, match="TRIPTYCH_API_KEYS is not set"):
        read_api_keys("environment")
    with pytest.raises(ValueError, match="absent cannot be read: No such file"):
        read_api_keys(str(tmp_path / "absent"))
    (tmp_path / "empty").write_text("# none yet\n")
    with pytest.raises(ValueError, match="holds no key"):
        read_api_keys(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    "content",
    [
        f"red:{FIRST}\n{SECOND.replace(':', '')}\n",  # no name
        f"red:{FIRST}\nblue:short\n",
        f"red:{FIRST}\nblue:with space {SECOND}\n",
        f"red:{FIRST}\nbl/ue:{SECOND}\n",
        f"red:{FIRST}\nblue: {SECOND}\n",
        f"red:{FIRST}\nblue:{FIRST}\n",
        f"red:{FIRST}\nblue:schlüssel-0123456789\n",
    ],
)
def test_what_cannot_be_used_is_named_without_being_shown(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(ValueError, match="keys") as error:
        read_api_keys(str(file))
    shown = f"{error.value} {error.value.__cause__!r} {error.value.__context__}"
    assert not any(secret in shown for secret in ("0123456789", "short", "key-"))


def test_a_key_is_not_in_its_own_words() -> None:
    assert FIRST not in repr(ApiKey("red", FIRST))


def test_a_bound_per_key_needs_keys() -> None:
    settings = {"model": "a/b", "decode": {}, "ingress": {"max_requests_per_key": 4}}
    with pytest.raises(ConfigError, match="max_requests_per_key needs api_keys"):
        parse_config(settings)
