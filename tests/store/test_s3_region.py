"""Which region an S3 client asks: AWS_REGION first, then what boto3 itself reads."""

from __future__ import annotations

import pytest

from quantlib.store.s3 import connect


@pytest.mark.parametrize(
    ("region", "default", "asked"),
    [
        ("eu-central-1", None, "eu-central-1"),
        (None, "eu-west-1", "eu-west-1"),
        ("eu-central-1", "eu-west-1", "eu-central-1"),
        ("", "eu-west-1", "eu-west-1"),
    ],
)
def test_both_variables_are_honoured(
    monkeypatch: pytest.MonkeyPatch, region: str | None, default: str | None, asked: str
) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    for name, value in (("AWS_REGION", region), ("AWS_DEFAULT_REGION", default)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert connect().meta.region_name == asked
