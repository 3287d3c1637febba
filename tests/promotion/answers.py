"""What a made-up report lets expect, and a fake server that answers so."""

from fake_openai import FakeOpenAI

from quantlib.promotion.smoke import Expected, Question

EXPECTED = Expected(
    prompts=(
        Question((1, 2, 3), " Paris. It is a city."),
        Question((4, 5), " four."),
        Question((6,), " red and blue"),
    ),
    max_new_tokens=8,
    probes=tuple(Question((100, 200 + index), f" {index}", 300 + index) for index in range(20)),
)


def answer_as_expected(fake: FakeOpenAI) -> None:
    fake.completions = {each.tokens: each.text for each in EXPECTED.prompts}
    fake.tokens = {each.tokens: each.token for each in EXPECTED.probes}
