"""Published checkpoints and keys, as the tests of publishing make them."""

from publishing.conftest import (  # noqa: F401 - fixtures
    keys,
    make_keys,
    make_run,
    no_signer,
    publish_run,
)
