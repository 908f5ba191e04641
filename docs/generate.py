"""Write the reference from the code: commands from their parser, settings from their dataclasses, errors from their classes."""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from fastcore.docments import docments

import notebook_to_prod

sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

from notebook_to_prod.cli.app import ROOMS, app

COMMON = ("json_output", "verbose", "env", "help")
ROOM_TITLES = {
    "train": "from a notebook to a run",
    "package": "from a run to a bundle with verdicts",
    "release": "from a bundle to a version that is live",
    "serve": "from a version to answers",
    "watch": "from answers to verdicts and a new run",
    "project": "the whole",
}
EXAMPLE = re.compile(r"^(?:\s*\x08\n)?\s*Example: (?P<line>.+)$", re.MULTILINE)


# Commands


def commands() -> Iterator[tuple[str, str, click.Command]]:
    """Room, full name and command of everything that can be run."""
    context = click.Context(app)
    for room, names in ROOMS.items():
        for name in names:
            found = app.get_command(context, name)
            assert found is not None, name
            yield from ((room, full, command) for full, command in _leaves(f"n2p {name}", found))


def _leaves(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield name, command
        return
    context = click.Context(command, info_name=name)
    for each in command.list_commands(context):
        found = command.get_command(context, each)
        assert found is not None, each
        yield from _leaves(f"{name} {each}", found)


def example(command: click.Command) -> str:
    """The example at the end of a command's help; empty if there is none."""
    found = EXAMPLE.search(command.help or "")
    return found["line"].strip() if found else ""


def cli_page() -> str:
    """Every command by room, with options, exit codes and example."""
    lines = [
        "# Commands\n",
        "Written from the parser of `n2p` itself. Every example is executed by the tests.\n",
        "Every command takes `--json` (one JSON object on standard output, everything else on standard error), `-v` (the",
        "traceback of an error), `--env NAME` (the store of that [environment](settings.md#environments)) and `--help`.\n",
        "Exit codes are the same everywhere: **0** done, **1** a verdict said no, **2** wrong usage or bad input, **3** a",
        "store, a server or a dependency is missing, **130** stopped by Ctrl-C. See [errors](errors.md).\n",
    ]
    room = ""
    for of, name, command in commands():
        if of != room:
            room = of
            lines.append(f"## {room}: {ROOM_TITLES.get(room, room)}\n")
        lines += _command(name, command)
    return "\n".join(lines)


def _command(name: str, command: click.Command) -> list[str]:
    context = click.Context(command, info_name=name)
    usage = " ".join(command.collect_usage_pieces(context))
    text = EXAMPLE.sub("", command.help or "").strip()
    paragraphs = [" ".join(each.split()) for each in re.split(r"\n\s*\n", text)]
    lines = [f"### {name}\n", f"```text\n{name} {usage}\n```\n"]
    lines += [f"{_escaped(each)}\n" for each in paragraphs]
    rows = [_option(each, context) for each in _options(command)]
    if rows:
        lines += ["| option | what it does |", "|---|---|", *rows, ""]
    if line := example(command):
        lines.append(f"```sh\n{line}\n```\n")
    return lines


def _options(command: click.Command) -> list[click.Option]:
    return [each for each in command.params if each.name not in COMMON and isinstance(each, click.Option)]


def _option(option: click.Option, context: click.Context) -> str:
    record = option.get_help_record(context)
    names, told = record if record else (", ".join(option.opts), "")
    return f"| {_code(names)} | {_escaped(told)} |"


def _code(text: str) -> str:
    return f"`{text.replace('|', '&#124;')}`" if "|" not in text else f"<code>{text.replace('|', '&#124;')}</code>"


def _escaped(text: str) -> str:
    """Plain text as Markdown; what is in backquotes stays."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([|<>*_\[\]])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts).replace("`|`", "`&#124;`")


# Settings


@dataclasses.dataclass(frozen=True)
class Table:
    """One table of settings, and the class that it becomes."""

    name: str
    told: str
    home: str = ""  # MODULE:CLASS
    rows: tuple[tuple[str, str, str], ...] = ()  # Key, default, meaning: what no class says
    without: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    periods: tuple[str, ...] = ()  # Keys whose seconds are written as a text such as "10 min"
    after: str = ""  # What stands below the keys


MEASURES = """`on` takes patterns of these, `*` standing for any letters, such as `["drift.*", "performance.f1"]`:

| ABOUT.MEASURE | subject | told by |
|---|---|---|
| `drift.distribution`, `drift.missing`, `drift.unseen`, `drift.range` | the column, or `prediction` | `n2p watch` |
| `drift.joint` | `all columns` | `n2p watch` |
| `performance.error` | `error` | `n2p watch`, where quality is not known |
| `performance.METRIC`, such as `performance.accuracy`, and `performance.calibration` | the slice, or empty | `n2p watch` |
| `fairness.selection_rate_difference`, `fairness.selection_rate_ratio`, `fairness.true_positive_rate_difference`, `fairness.false_positive_rate_difference` | the attribute | `n2p watch` |
| `performance.estimated_METRIC`, such as `performance.estimated_accuracy` | empty | `n2p diagnose` |
| `performance.change` | the detector | `n2p diagnose` |
| `performance.loss` | empty | `n2p diagnose` |
| `service.NUMBER`, named as the keys of `[tool.n2p.watch.health]` | empty | `n2p diagnose` |
| `kpi.NAME` | empty | `n2p diagnose` |

A drop of quality is one alert of a rule with a pattern, that of the primary metric; a rule that names a metric, or has a limit,
is about each metric that it fits.
"""


TABLES = (
    Table(
        "tool.n2p",
        "The project itself.",
        rows=(
            (
                "require_seal",
                "true",
                "Whether a promotion asks for a sealed bundle: installed in an empty environment, and its golden rows predicted there",
            ),
            ("trusted", "[]", "Libraries whose objects a model may hold besides those that models are made of"),
        ),
    ),
    Table(
        "tool.n2p.check",
        'What `n2p check` says of which code. The same three keys below `[tool.n2p.check.notebooks."PATTERN"]` are for single notebooks.',
        "train.check.config:CheckConfig",
    ),
    Table(
        "tool.n2p.gates",
        "The policy that `n2p gate` asks. `n2p gate --show-policy` prints yours, with every default.",
        "package.gates.policy:Policy",
        without=("folder", "quality", "data", "robustness", "fairness", "explain", "serving"),
    ),
    *(
        Table(f"tool.n2p.gates.{part}", "", f"package.gates.policy:{part.capitalize()}Policy")
        for part in ("quality", "data", "robustness", "fairness", "explain", "serving")
    ),
    Table(
        "tool.n2p.stages",
        "What an alias asks of a version. `production = true` asks the gates; a path asks a policy of its own; a table `[tool.n2p.stages.NAME]` says more. What is not said asks nobody.",
        "release.stages:StageRules",
        without=("stage",),
    ),
    Table(
        "tool.n2p.owners, teams, roles, alerts, tokens",
        "People: each key has a list of names, `@team` for those of a team and `@owners` for those of the model.",
        rows=(
            ("owners.MODEL", "nobody", 'Who owns a model; `"*"` is every model'),
            ("teams.NAME", "", "The people of a team"),
            (
                "roles.ROLE",
                "everybody",
                "Who may: `register`, `promote`, `approve`, `override`, `archive` and so on; a wrong name lists the right ones",
            ),
            ("alerts.KIND", "nobody", 'Who is told of what; `"*"` is everything'),
            ("tokens.USER", "", "The digest that `n2p token new USER` prints"),
        ),
    ),
    Table(
        "tool.n2p.environments.NAME",
        "A store of its own, chosen by `--env NAME` or `N2P_ENV`.",
        rows=(
            ("home", "needed", "The folder of the store"),
            (
                "tracking_uri",
                "SQLite in home",
                "MLflow's tracking server or database; may name variables, as `$N2P_PASSWORD`",
            ),
            ("registry_uri", "tracking_uri", "Another one for the registry"),
            ("alias", "NAME", "What the live version is called there"),
        ),
    ),
    Table("[tool.n2p.webhooks]", "An address that is told of events.", "release.webhook:Webhook"),
    Table("tool.n2p.card", "Texts for the model card that no record holds.", rows=()),
    Table(
        "tool.n2p.score.TEST",
        "What was done by hand, for the ML Test Score.",
        rows=(("by", "needed", "Who did it"), ("evidence", "needed", "A file that shows it")),
    ),
    Table(
        "tool.n2p.features",
        "See [features online and offline](../guides/features.md).",
        rows=(
            ("definitions", "[]", "Notebooks or modules that define features"),
            ("store", "SQLite in the store", "The address of the online store: SQLite, PostgreSQL or Redis"),
            ("sources.NAME", "", "A path, or a table with `source`, `query` or `table`"),
        ),
    ),
    Table(
        "tool.n2p.serve.security",
        "Who may ask. Without keys a service answers its own machine only.",
        "serve.access.known:AccessSettings",
        renamed=(("issuer", "jwt"),),
    ),
    Table(
        "tool.n2p.serve.security.keys.NAME",
        "A caller; `n2p apikey new NAME` prints the line.",
        rows=(
            ("digest", "needed", "Or a list of two, while a key is replaced"),
            ("scopes", '["predict"]', "What it may do"),
            ("expires", "never", "A moment, without quotes"),
            ("rate", "that of security", 'As `"100/second"`'),
        ),
    ),
    Table(
        "tool.n2p.serve.security.jwt",
        "Tokens of an OpenID Connect issuer; needs the extra `[auth]`.",
        "serve.access.issuer:Issuer",
    ),
    Table("tool.n2p.serve.tls", "", "serve.access.tls:Tls"),
    Table("tool.n2p.serve.limits", "What a process takes on.", "serve.steady.limits:Limits"),
    Table("tool.n2p.serve.fallback", "What answers when the model cannot.", "serve.steady.fallback:Fallback"),
    Table("tool.n2p.serve.cache", "", "serve.steady.cache:Cache"),
    Table("tool.n2p.serve.features", "", "serve.features:FeatureSettings"),
    Table("tool.n2p.serve.log", "The request log.", "serve.log.request_log:LogSettings"),
    Table("tool.n2p.serve.log.columns.NAME", "", "serve.log.request_log:ColumnRule"),
    Table("tool.n2p.serve.metrics", "", "serve.observe.metrics:MetricsSettings"),
    Table("tool.n2p.serve.dashboard", "", "serve.observe.dashboard:DashboardSettings"),
    Table("tool.n2p.serve.logging", "", "serve.observe.journal:LoggingSettings"),
    Table("tool.n2p.serve.traces", "Needs the extra `[otel]`.", "serve.observe.traces:TracesSettings"),
    Table(
        "tool.n2p.serve.rollout",
        "How a service follows its model, and how a rollout is judged.",
        "serve.rollout.follow:RolloutSettings",
    ),
    Table("tool.n2p.watch", "When drift or a drop is worth telling.", "watch.rules:Rules"),
    Table("tool.n2p.watch.estimate", "Quality without labels, for `n2p diagnose`.", "watch.estimated:EstimateRules"),
    Table(
        "tool.n2p.watch.detectors",
        "Changes in a stream of errors; needs the extra `[stream]`.",
        "watch.detectors:StreamRules",
    ),
    Table("tool.n2p.watch.health", "The service, from its `/metrics`.", "watch.health:HealthRules"),
    Table(
        "tool.n2p.kpis.NAME",
        'Numbers of the business. `NAME = "kpis.ipynb:revenue"` is short for `of`.',
        rows=(
            ("of", "needed", "`PATH.ipynb:FUNCTION` of an exported cell, or `module:FUNCTION`"),
            ("min", "none", "The least it may be"),
            ("max", "none", "The most it may be"),
            ("minimum", "1", "Rows of a window, below which it is not asked"),
        ),
    ),
    Table(
        "[tool.n2p.rules]",
        "When somebody is told of what. Without any, five rules of the package hold.",
        "watch.alerts:Rule",
        periods=("repeat",),
        after=MEASURES,
    ),
    Table("tool.n2p.channels.NAME", "How they are told.", "watch.channels:Channel", without=("name",)),
    Table(
        "tool.n2p.retrain.NAME",
        "How the model NAME is retrained.",
        "watch.retrain_settings:RetrainSettings",
        without=("name", "options", "is_function"),
        renamed=(("when", "if"),),
    ),
    Table(
        "tool.n2p.retrain.NAME.canary",
        'Or `canary = "none"`.',
        "watch.retrain_settings:CanarySettings",
        periods=("period",),
    ),
)
MEANINGS = {  # Of keys whose class says it elsewhere
    "retrain.NAME": {
        "notebook": "The training notebook",
        "parameters": "Other parameters of the run",
        "ingest": "Where rows come from: `log`, `MODULE:FUNCTION` of the project, a path or a database",
        "label": "The column of what was true",
        "time": "The column of the moment",
        "grain": "The step by which the newest rows are cut",
        "features": "Views of features to join",
        "stale": "Age of the live model from which on it is stale",
        "every": "For the trigger `schedule`",
        "new_labels": "For the trigger `new-data`",
        "minimum_labels": "Labelled rows, below which nothing is done",
        "cooldown": "Between two retrainings",
        "budget": "Retrainings in `per`",
        "per": "See `budget`",
        "canary": "See below",
        "owner": "Who is told",
        "dask": "Where the notebook runs: `local`, or the address of a Dask scheduler whose workers share the folders of project and store",
    },
    "*": {
        "seed": "Of everything that is drawn",
        "rows": "Most rows that are looked at",
        "shap_rows": "Rows that SHAP explains",
        "confidence": "Of every interval",
        "p99_ms": "Milliseconds within which 99 of 100 requests are answered",
        "memory_mb": "Of a serving process",
        "cold_start_s": "Seconds until a process answers",
        "bundle_mb": "Size of the bundle",
        "approvals": "How many different people have to approve",
        "expires": 'How long an approval counts, as `"14 days"`',
        "p50_seconds": "Within which half of the requests are answered",
        "p95_seconds": "Within which 95 of 100 are",
        "p99_seconds": "Within which 99 of 100 are",
        "loop_delay_seconds": "How late the event loop may be",
        "name": "What it is called",
        "below": "The limit that a value must not fall below",
        "url": "Where to; may name a variable, as `$SLACK_URL`",
        "sender": "From whom mail comes",
        "to": "To whom",
        "user": "Of the mail server",
    },
    "check": {
        "ignore": "Codes that are not reported",
        "error": "Codes that are errors",
        "warn": "Codes that are warnings",
    },
    "serve.security.jwt": {
        "issuer": "Who signs",
        "audience": "For whom a token has to be",
        "algorithms": "What is accepted",
        "scopes_claim": "The claim that names scopes",
        "scope_prefix": "What a scope of ours begins with there",
    },
}


def settings_page() -> str:
    """Every table of `[tool.n2p]`."""
    lines = [
        "# Settings\n",
        "All of them are in `pyproject.toml`, below `[tool.n2p]`; an exported service has those of `[tool.n2p.serve]` in its",
        "`service.toml`, without the prefix. A key that there is not is an error that names the nearest one. Written from the",
        "classes that read them.\n",
    ]
    for table in TABLES:
        lines += _table(table)
    lines += _variables()
    return "\n".join(lines)


def _table(table: Table) -> list[str]:
    short = table.name.removeprefix("tool.n2p").lstrip(".").strip("[]").removeprefix("tool.n2p.")
    heading = f"`[{table.name}]`"
    anchor = (
        re.sub(r"[^a-z]+", "-", (short or "project").lower()).strip("-").removesuffix("-name").removesuffix("-test")
    )
    lines = [f"## {heading} {{ #{anchor} }}\n"]
    lines += [f"{table.told}\n"] if table.told else []
    rows = table.rows or tuple(_fields(table, MEANINGS["*"] | MEANINGS.get(short, {})) if table.home else _card())
    lines += ["| key | default | meaning |", "|---|---|---|"]
    lines += [
        f"| `{key}` | {_default(default)} | {_escaped(told).replace(chr(10), ' ')} |" for key, default, told in rows
    ]
    return [*lines, "", *([table.after] if table.after else [])]


def _card() -> Iterator[tuple[str, str, str]]:
    from notebook_to_prod.release.records import TEXTS

    yield from ((name, '""', title) for name, title in TEXTS.items())


def _default(text: str) -> str:
    return f"`{text}`" if text and text not in ("needed", "nobody", "everybody", "never", "none") else text


def _fields(table: Table, meanings: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    module, name = table.home.split(":")
    kind = getattr(importlib.import_module(f"notebook_to_prod.{module}"), name)
    constants = vars(importlib.import_module(f"notebook_to_prod.{module}"))
    told = {name: _with_values(text or "", constants) for name, text in docments(kind).items()}
    for each in dataclasses.fields(kind):
        if each.name not in table.without:
            yield (
                dict(table.renamed).get(each.name, each.name),
                f'"{_period(each.default)}"' if each.name in table.periods else _written(each),
                told.get(each.name) or meanings.get(each.name, ""),
            )


def _period(seconds: Any) -> str:
    """Seconds as settings write a time."""
    unit, name = next(
        (unit, name) for unit, name in ((86_400, "day"), (3_600, "hour"), (60, "min"), (1, "s")) if not seconds % unit
    )
    number = seconds / unit
    return f"{number:g} {name}" + "s" * (number != 1 and name in ("day", "hour"))


def _with_values(text: str, constants: Mapping[str, Any]) -> str:
    """What a key means, with the values in place of the constant that holds them."""

    def values(found: re.Match[str]) -> str:
        known = constants.get(found[1])
        first = "One of" if found[0].startswith("One") else "Any of"
        return " ".join([first, ", ".join(f"`{each}`" for each in known)]) if isinstance(known, tuple) else found[0]

    return re.sub(r"^(?:One of|Of) `([A-Z_]+)`", values, text)


def _written(field: dataclasses.Field[Any]) -> str:
    """A default as TOML has it."""
    value = field.default
    if value is dataclasses.MISSING:
        value = field.default_factory() if field.default_factory is not dataclasses.MISSING else "needed"
    if value == "needed":
        return "needed"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime.timedelta):
        return f'"{_period(value.total_seconds())}"'
    if isinstance(value, tuple | frozenset | list):
        return (
            "["
            + ", ".join(f'"{each}"' if isinstance(each, str) else f"{each}" for each in sorted(value, key=str))
            + "]"
        )
    if isinstance(value, dict) or value == {}:
        return "{}"
    return f'"{value}"' if isinstance(value, str) or not isinstance(value, int | float) else f"{value}"


def _variables() -> list[str]:
    rows = (
        ("N2P_HOME", "The folder of the store, instead of `.n2p`"),
        ("N2P_ENV", "The environment, as `--env`"),
        ("N2P_TOKEN", "Who you are, where the operating system does not tell"),
        ("N2P_UI_TOKEN", "What `n2p ui` asks of everybody beyond this machine"),
        ("N2P_THREADS", "Threads of native libraries"),
        ("N2P_REQUIRE_SEAL, N2P_REQUIRE_GATE", "`0` asks for none"),
        ("N2P_TRUSTED", "Libraries, as `trusted`"),
        ("N2P_WITHOUT_AUTHENTICATION", "`1` lets a service listen beyond its machine without keys"),
        ("MLFLOW_TRACKING_URI, MLFLOW_REGISTRY_URI", "MLflow's own: where runs and registry are"),
    )
    lines = ["## Variables of the environment\n", "| variable | meaning |", "|---|---|"]
    return [*lines, *(f"| `{name}` | {told} |" for name, told in rows), ""]


# Errors

REMEDIES = {
    "N2PError": "Read `remedy`; every error has one where there is one to give.",
    "InputError": "Correct what `where` names.",
    "ParameterError": "The remedy lists the parameters that the notebook declares.",
    "NotFoundError": "The remedy lists what there is; `n2p list` shows models.",
    "AccessError": "Ask who has the role, or set `N2P_TOKEN`.",
    "DataError": "Look at the column or file that is named.",
    "NotebookError": "Correct the cell that is named.",
    "ExportError": "Put a class into a cell that begins with `#| export`, or into a module beside the notebook; keep secrets out of the pipeline.",
    "BundleError": "Fetch or export it again; `n2p bundle verify` says which file.",
    "RunError": "Open the partial notebook that the record keeps.",
    "CellError": "Mend the cell; the partial notebook shows its output so far.",
    "KernelStartError": "Install ipykernel in the environment that the notebook's kernel names.",
    "KernelDiedError": "Give it more memory, or less data; look for native crashes.",
    "RunTimeoutError": "Raise `--timeout`, or make the cell quicker.",
    "RunInterruptedError": "Call it again: it begins anew.",
    "VerdictError": "Read the verdict. Change the model, or overrule with `--override --reason`.",
    "CheckError": "See the rules below; `n2p check --fix` repairs what is safe.",
    "UnavailableError": "Start or install what is named.",
    "DependencyError": "Run the `pip install` line that the remedy gives.",
    "LockMismatchError": "Install the lock, or `n2p lock` again, or `--allow-unlocked`.",
    "StoreError": "Look at permissions and space of the folder named.",
    "TrackingError": "Start the server of `MLFLOW_TRACKING_URI`, or unset it.",
    "ServerError": "Look at the log of the service.",
}


def errors_page() -> str:
    """Exit codes, classes of errors and the rules of the checker."""
    from notebook_to_prod import errors
    from notebook_to_prod.train.check.findings import RULES

    lines = [
        "# Exit codes and errors\n",
        "## Exit codes\n",
        "| code | meaning | what a script does |",
        "|---|---|---|",
        "| 0 | done | goes on |",
        "| 1 | a verdict said no: a gate, a check, drift, a missing approval | tells people; trying again changes nothing |",
        "| 2 | wrong usage or bad input | stops; the call has to be corrected |",
        "| 3 | a store, a server or a dependency is missing | tries again later |",
        "| 130 | stopped by Ctrl-C or a signal | stops |\n",
        "## What an error says\n",
        "What was wrong, where, and the remedy. With `--json` the same is one object on standard output:\n",
        "```sh exit=2",
        "n2p run train.ipynb -p n_tree 20 --json",
        "```\n",
        "```text expect",
        '"type": "ParameterError", "what": "unknown parameter \'n_tree\', did you mean \'n_trees\'?"',
        '"exit_code": 2',
        "```\n",
        "## Classes\n",
        "In Python they are in `notebook_to_prod.errors`; each is a subclass of the one in the third column.\n",
        "| error | exit code | is a | meaning | remedy |",
        "|---|---|---|---|---|",
    ]
    for name in errors.__all__:
        kind = getattr(errors, name)
        told = (kind.__doc__ or "").strip()
        lines.append(
            f"| `{name}` | {kind.exit_code} | `{kind.__base__.__name__}` | {_escaped(told)} | {REMEDIES[name]} |"
        )
    lines += [
        "\n## Rules of n2p check { #rules }\n",
        "A code never changes its meaning. `# n2p: allow N2P301` in a line lets one pass there; `[tool.n2p.check]` for a",
        "[project](settings.md#check); `--allow CODE` for one call. The remedy is in each finding, since it depends on the cell.\n",
        "| code | is | stands for |",
        "|---|---|---|",
        *(f"| `{rule.code}` | {rule.severity} | {rule.title} |" for rule in RULES.values()),
    ]
    return "\n".join(lines) + "\n"


# Calls

GROUPS = {
    "In a notebook": ("start", "Run", "load", "secret", "infer_schema", "Schema"),
    "Features": ("features", "FeatureView", "point_in_time", "open_online"),
    "Runs and bundles": ("run_notebook", "RunRecord", "RunSpec", "open_bundle", "Bundle"),
    "The registry": ("Registry", "ModelVersion", "on_event", "verify_webhook"),
    "Prediction": ("Predictor", "load_predictor"),
}


def api_page() -> str:
    """The public names of the package, by what they are for."""
    homes = notebook_to_prod._HOMES
    lines = [
        "# Calls\n",
        "What `import notebook_to_prod as n2p` gives. Each name is imported when it is first used, so the import itself is",
        "quick. Errors are in `notebook_to_prod.errors`, see [errors](errors.md). Everything else in the package may change",
        "from one version to the next; the notebooks under *How it is built* document it.\n",
    ]
    others = tuple(name for name in homes if not any(name in names for names in GROUPS.values()))
    for title, names in {**GROUPS, **({"Others": others} if others else {})}.items():
        lines.append(f"## {title}\n")
        for name in names:
            if name in homes:
                lines.append(f"::: notebook_to_prod.{homes[name]}.{name}\n    options:\n      heading_level: 3\n")
    return "\n".join(lines)


def record_table() -> str:
    """What `record.json` of a run has, as a table."""
    from notebook_to_prod.train.record import RunRecord, RunSpec

    rows = []
    for kind, prefix in ((RunRecord, ""), (RunSpec, "spec.")):
        told = docments(kind)
        rows += [
            f"| `{prefix}{each.name}` | {_escaped(told.get(each.name) or '')} |" for each in dataclasses.fields(kind)
        ]
    return "\n".join(["| key | meaning |", "|---|---|", *rows])


PAGES = {"cli.md": cli_page, "api.md": api_page, "settings.md": settings_page, "errors.md": errors_page}


def write_reference(folder: Path) -> None:
    """Write the generated pages into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (folder / name).write_text(page(), encoding="utf-8")


_RECORD = re.compile(r"(?<=<!-- record -->\n\n).*?(?=\n\n<!-- end of record -->)", re.DOTALL)


def with_record(formats: str) -> str:
    """The page of formats with the table of today's record."""
    return _RECORD.sub(lambda _: record_table(), formats)
