"""What `n2p --help` costs beside the tools it stands next to: CPU seconds of whole processes, in turn, median of several.

Run: python benchmarks/cli_startup.py
Peers: `mlflow --version` and `papermill --version`, which print one line.
Limit: 0.2 s of CPU for `n2p --help`.
"""

from measure import cpu_seconds, table

LIMIT = 0.2
COMMANDS = {
    "n2p --help": ["n2p", "--help"],
    "papermill --version": ["papermill", "--version"],
    "mlflow --version": ["mlflow", "--version"],
}


def main() -> int:
    """Measure, print and return 1 if the limit is exceeded."""
    seconds = cpu_seconds(COMMANDS, rounds=7)
    ours = seconds["n2p --help"]
    print(
        table(
            ["command", "CPU s", "times ours"],
            [[name, f"{value:.3f}", f"{value / ours:.1f}"] for name, value in seconds.items()],
        )
    )
    print(f"n2p --help: {ours:.3f} s of CPU, limit {LIMIT} s: {'held' if ours <= LIMIT else 'EXCEEDED'}")
    return int(ours > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
