"""What is made of a server's answers, against a fake of vLLM's and against what is no server."""

import socket
import threading
from collections.abc import Iterator

import pytest
from fake_openai import FakeOpenAI, fake_openai

from quantlib.serving.client import Completion, Server, ServerError, at_url


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    with fake_openai() as fake:
        yield fake


@pytest.fixture
def silent() -> Iterator[tuple[str, list[bytes]]]:
    """A listener that sends what the list holds to each that connects, and nothing else."""
    to_send: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connection.recv(1 << 16)
                if to_send:
                    connection.sendall(to_send[0])
                    connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", to_send
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_prompts_go_in_one_request_as_numbers_and_come_back_in_order(fake: FakeOpenAI) -> None:
    fake.completions = {(1, 2): " one", (3,): " two"}
    fake.tokens = {(3,): 77}
    server = at_url(f"{fake.url}/v1/")
    assert server.name == fake.url
    assert server.models() == ("served",)
    found = server.complete("served", [(1, 2), (3,), (4,)], 8)
    assert found == [
        Completion(" one", tuple(b" one")),
        Completion(" two", (77,)),
        Completion(" ??", tuple(b" ??")),
    ]
    (body,) = fake.asked
    assert body == {
        "model": "served",
        "prompt": [[1, 2], [3], [4]],
        "max_tokens": 8,
        "temperature": 0,
        "repetition_penalty": 1.0,
        "return_token_ids": True,
    }


def test_answers_are_sorted_by_their_index() -> None:
    choices = b'{"choices": [{"index": 1, "text": "b"}, {"index": 0, "text": "a"}]}'
    found = Server("it", lambda *_: choices).complete("m", [(1,), (2,)], 1)
    assert found == [Completion("a", None), Completion("b", None)]


def test_each_request_is_a_connection_of_its_own(fake: FakeOpenAI) -> None:
    server = at_url(fake.url)
    for _ in range(3):
        server.complete("served", [(1,)], 1)
    assert fake.connections == 3


def test_the_slowest_answer_is_remembered(fake: FakeOpenAI) -> None:
    server = at_url(fake.url)
    fake.delay = 0.3
    server.models()
    fake.delay = 0.0
    server.models()
    assert 0.3 <= server.slowest < 5


def refusal(url: str, seconds: float = 5.0) -> str:
    with pytest.raises(ServerError) as caught:
        at_url(url).models(seconds)
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith(f"{url}/v1/models ")
    return said


def test_an_absent_server_is_a_line_that_says_why(fake: FakeOpenAI) -> None:
    assert "its name does not resolve" in refusal("http://canary.invalid")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = listener.getsockname()[1]
    assert "the connection is refused" in refusal(f"http://127.0.0.1:{free}")
    assert "TLS" in refusal(fake.url.replace("http", "https"))
    fake.broken = True
    assert 'answers 500: {"data"' in refusal(fake.url)


def test_a_silent_server_is_a_line_that_says_how_long(silent: tuple[str, list[bytes]]) -> None:
    assert "does not answer within 0.2 s" in refusal(silent[0], 0.2)


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{", "broke the connection off"),
        (b"220 mail ready\r\n", "does not speak HTTP: '220 mail ready'"),
        (b"HTTP/1.1 503 No\r\n\r\n", "answers 503: No"),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>\n</html>", "answers otherwise than vLLM does"),
        (b'HTTP/1.1 200 OK\r\n\r\n{"data": 3}', "answers otherwise than vLLM does"),
        (b"HTTP/1.1 200 OK\r\n\r\n[1]", "answers otherwise than vLLM does"),
        (b'HTTP/1.1 200 OK\r\n\r\n{"data": []}', "names no model"),
    ],
)
def test_what_is_no_list_of_models_is_said(
    silent: tuple[str, list[bytes]], sent: bytes, said: str
) -> None:
    silent[1].append(sent)
    assert said in refusal(silent[0])


@pytest.mark.parametrize("answer", [b"{}", b'{"choices": []}', b'{"choices": [{"index": 0}]}'])
def test_a_completion_that_is_none_is_said(answer: bytes) -> None:
    with pytest.raises(ServerError, match="it/v1/completions answers otherwise"):
        Server("it", lambda *_: answer).complete("m", [(1,)], 1)


def test_an_answer_after_its_time_is_none(fake: FakeOpenAI) -> None:
    import time

    def late(*_: object) -> bytes:
        time.sleep(0.2)
        return b"{}"

    with pytest.raises(ServerError, match=r"it/v1/models took 0\.\d s, above 0\.1 s"):
        Server("it", late).models(0.1)
