"""What a person reads when the bucket, the credentials or the endpoint are wrong."""

from collections.abc import Callable
from pathlib import Path

import pytest
import s3
from ports import free_ports

from quantlib.errors import StoreError
from quantlib.store import open_store
from quantlib.store.s3 import S3Store


def problem(address: str) -> str:
    store = open_store(address)
    assert isinstance(store, S3Store)
    with pytest.raises(StoreError) as caught:
        store.check_access()
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"s3://{address.split('/')[2]}")
    for _, secret in (s3.OWNER, s3.READER):
        assert secret not in text
    return text


def test_a_bucket_that_is_not_there(proxy: s3.Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy.break_next(s3.refuse("NoSuchBucket", 404), "GET")
    assert "there is no such bucket" in problem("s3://absent/x")


def test_a_key_that_may_only_read(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.READER[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.READER[1])
    assert "no permission for CreateMultipartUpload" in problem(s3_address)


def test_an_unknown_key(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    assert "does not know the access key; check AWS_ACCESS_KEY_ID" in problem(s3_address)


def test_a_wrong_secret(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    text = problem(s3_address)
    assert "check AWS_SECRET_ACCESS_KEY" in text
    assert "wrong" not in text


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("ExpiredToken", "the credentials have expired"),
        ("RequestTimeTooSkewed", "the clocks of this machine and the server differ"),
        ("PermanentRedirect", "in another region; set AWS_REGION"),
        ("AccessDenied", "no permission for ListObjectsV2"),
    ],
)
def test_what_aws_says_and_the_server_here_does_not(
    s3_address: str, proxy: s3.Proxy, code: str, cause: str
) -> None:
    proxy.break_next(s3.refuse(code, 400), "GET")
    assert cause in problem(s3_address)


def test_no_credentials(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "no credentials were found; set AWS_ACCESS_KEY_ID" in problem(s3_address)


def test_an_endpoint_where_nobody_listens(
    s3_address: str, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
    assert f"http://127.0.0.1:{port} cannot be reached" in problem(s3_address)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"<html><body>hello", "refused ListObjectsV2"),
        (b"<html><body>hello</body></html>", "does not answer as an S3 server"),
    ],
)
def test_an_endpoint_that_is_no_s3_server(
    s3_address: str, proxy: s3.Proxy, text: bytes, said: str
) -> None:
    def page(handler: s3._Handler, body: bytes) -> bool:
        handler.answer(200, [("Content-Type", "text/html")], text)
        return True

    proxy.break_next(page, times=50)
    assert f"http://127.0.0.1:{proxy.port} {said}" in problem(s3_address)
    store = open_store(s3_address)
    assert isinstance(store, S3Store)
    with pytest.raises(StoreError, match=said):
        store.check_access()


def test_a_token_that_the_environment_names_and_nobody_mounted(
    s3_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/reader")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    assert f"{tmp_path}/token: No such file" in problem(s3_address)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None] | None:
    monkeypatch.setattr(
        "botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.02
    )
    return None
