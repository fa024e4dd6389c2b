"""Settings of a service: files, what is given beside them, and one line for what is no setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tfswa.runtime.errors import UsageError
from tfswa.runtime.service.settings import ServiceSettings, named_models, read_settings

TEXT = """
port = 9000
data = "there"
keys = "keys.json"

[models]
plain = "plain.tfx"
both = {models = ["a.tfx", "b.tfx"], weights = ["2,1"]}

[engine]
backend = "ort"
jobs = 3

[limits]
upload_mb = 10
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "serve.toml"
    path.write_text(TEXT)
    return path


def test_a_file_says_what_it_says_and_the_rest_is_usual(path: Path) -> None:
    found = read_settings(path)
    assert (found.host, found.port, found.data) == ("127.0.0.1", 9000, Path("there"))
    assert list(found.models) == ["plain", "both"]
    assert found.models["plain"].models == ["plain.tfx"]
    assert found.models["both"].weights == ["2,1"]
    assert (found.engine.backend, found.engine.jobs, found.engine.batch) == ("ort", 3, 1)
    assert found.limits.upload_mb == 10
    assert found.default_model == "plain"
    assert ServiceSettings.model_validate_json(found.model_dump_json()) == found


def test_what_is_given_goes_before_the_file(path: Path) -> None:
    engine = {"jobs": None, "backend": "openvino"}
    found = read_settings(path, port=1, host=None, models={"one": "one.tfx"}, engine=engine)
    assert (found.port, list(found.models)) == (1, ["one"])
    assert (found.engine.backend, found.engine.jobs) == ("openvino", 3)


def test_without_a_file_the_embedded_model_is_served_to_this_machine() -> None:
    found = read_settings(None)
    assert (found.default_model, found.models["demo"].models, found.loopback) == ("demo", ["demo"], True)
    assert not read_settings(None, host="0.0.0.0").loopback


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prot = 1", "prot is no setting, did you mean 'port'?"),
        ("[engine]\nbatsch = 1", "engine.batsch is no setting, did you mean 'batch'?"),
        ("[limits]\nupload_mb = -1", "limits.upload_mb is -1: input should be greater than 0"),
        ("[limits]\nupload_mb = nan", "limits.upload_mb is nan: input should be a finite number"),
        ("port = 65536", "port is 65536: input should be less than or equal to 65535"),
        ("port = '80'", "port is '80': input should be a valid integer"),
        ("[models]", "models is {}: no model is served: name one"),
        ("[models]\n'../a' = 'a.tfx'", "'../a' is no name"),
        ("[models]\na = {models = []}", "models.a.models is []: list should have at least 1 item"),
        ("engine = 3", "engine is 3: input should be"),
        ("[models", "cannot be read"),
    ],
)
def test_what_is_no_setting_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "serve.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as found:
        read_settings(path, engine={"jobs": 2})
    assert says in str(found.value)
    assert str(found.value).startswith(str(path))
    assert "\n" not in str(found.value)


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"missing\.toml cannot be read: No such file"):
        read_settings(tmp_path / "missing.toml")


def test_models_have_the_names_of_their_files_or_others() -> None:
    given = ("demo", "models/vocals.v2.tfx", "best=there/a.tfx")
    found: dict[str, Any] = named_models(given)
    assert found == {"demo": "demo", "vocals.v2": "models/vocals.v2.tfx", "best": "there/a.tfx"}
    with pytest.raises(UsageError, match=r"two models are called a, x/a.tfx and y/a.tfx: say NAME=MODEL"):
        named_models(("x/a.tfx", "y/a.tfx"))
