"""Serve one pipeline side by side: a bare echo, our service, the usual FastAPI with a DataFrame, `mlflow models serve`, and on request BentoML and MLServer.

    python benchmarks/serving.py                   # the forest and the linear model, peers that are installed here
    python benchmarks/serving.py --peers all       # BentoML and MLServer too, in environments that pip makes in .serving-peers/
    python benchmarks/serving.py --models forest --seconds 1 --rounds 3 --peers none

All servers are one process each and run all the time; load goes to one after another in short rounds, so that a machine that is busy for a while is busy for
all of them, and each ratio is the median of the rounds' ratios. Before that each has four seconds of load that are not measured: what a service
makes ready while it answers, such as machine code for a model, is made by then. The client is a process of its own with 32 kept connections: it checks every
status and, of every hundredth answer, the prediction. Ours writes its request log, counts its metrics, keeps its limits and sends a tenth of the requests to a canary.
"""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from measure import table

CONNECTIONS, MANY, WARM = 32, 1000, 4.0  # The last in seconds
LIMITS = {"forest": 100, "linear": 25}  # Times the requests of a second of each peer
PEERS = {"naive": [], "mlflow": [], "bentoml": ["bentoml"], "mlserver": ["mlserver", "mlserver-sklearn"]}


# The client: a process of its own


async def _client(
    url: str, path: str, bodies: list[bytes], check: Any, connections: int, seconds: float
) -> dict[str, Any]:
    host, port = url.removeprefix("http://").split(":")
    head = f"POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\ncontent-length: "
    wires = [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]
    end = time.perf_counter() + seconds
    times: list[float] = []

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection(host, int(port), limit=2**24)
        place = number
        while (start := time.perf_counter()) < end:
            place += 1
            writer.write(wires[place % len(wires)])
            answer = await reader.readuntil(b"\r\n\r\n")
            lower = answer.lower()
            if b" 200 " not in answer[:15]:
                raise SystemExit(f"{path} answered {answer[:15].decode()}: {(await reader.read(500)).decode()}")
            if (at := lower.find(b"content-length:")) >= 0:
                content = await reader.readexactly(int(lower[at + 15 : lower.index(b"\r", at)]))
            else:
                content = b""
                while size := int(await reader.readline(), 16):
                    content += (await reader.readexactly(size + 2))[:-2]
                await reader.readline()
            times.append(time.perf_counter() - start)
            if check is not None and len(times) % 100 == 1:
                found, wanted = json.loads(content), check[place % len(check)]
                for key in ("predictions", "outputs"):
                    found = found.get(key, found) if isinstance(found, dict) else found
                found = found[0]["data"] if found and isinstance(found[0], dict) else found
                if found[0] != wanted:
                    raise SystemExit(f"{path} predicted {found[0]} and not {wanted}")
        writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(connections)))
    times.sort()
    wall = time.perf_counter() - start
    return {"rate": len(times) / wall, "p50": times[len(times) // 2], "p99": times[int(len(times) * 0.99)]}


def client(job: str) -> None:
    """Run one job from a file and print what it measured."""
    if find_spec("uvloop"):
        import uvloop

        uvloop.install()
    given = json.loads(Path(job).read_text())
    bodies = [body.encode() for body in given.pop("bodies")]
    print(json.dumps(asyncio.run(_client(bodies=bodies, **given))))


def ask(folder: Path, **job: Any) -> dict[str, float]:
    """Run the client in a process of its own."""
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    done = subprocess.run(
        [sys.executable, __file__, "--client", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout)


# The servers


ECHO = """
import sys, uvicorn
async def app(scope, receive, send):
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
uvicorn.run(app, port=int(sys.argv[1]), access_log=False, log_level="warning", lifespan="off")
"""
OURS = """
import json, sys, tempfile
from pathlib import Path
from notebook_to_prod.serve.predictor import load_predictor
from notebook_to_prod.serve.server import serve
predictor, folder = load_predictor(sys.argv[2], name="flights", version="1"), Path(tempfile.mkdtemp(dir=Path(sys.argv[2]).parents[1]))  # which ends with the store
live = {"name": "flights", "version": "1", "bundle": predictor.bundle.digest, "path": sys.argv[2]}
canary = {"route": "canary", "target": {**live, "version": "2"}, "weight": 0.1}
(folder / "layout.json").write_text(json.dumps({"live": live, "arms": [canary], "rollout": "benchmark"}))
settings = {"log": {"folder": str(folder / "log")}, "rollout": {"file": str(folder / "layout.json")}}
serve(predictor, port=int(sys.argv[1]), settings=settings, announce=lambda url: None)
"""
NAIVE = """
import sys, pandas, uvicorn
from fastapi import FastAPI
from pydantic import create_model
from notebook_to_prod.package.bundle import load_pipeline, open_bundle
bundle = open_bundle(sys.argv[2])
pipeline = load_pipeline(bundle)
kinds = {"integer": int, "number": float, "string": str}
Row = create_model("Row", **{each.name: (kinds[each.kind] | None, ...) for each in bundle.schema.columns})
Rows = create_model("Rows", rows=(list[Row], ...))
app = FastAPI()
@app.post("/predict")
def predict(request: Rows):
    frame = pandas.DataFrame([row.model_dump() for row in request.rows])
    frame = frame.astype({each.name: each.dtype for each in bundle.schema.columns})
    return {"predictions": pipeline.predict(frame).tolist(), "probabilities": pipeline.predict_proba(frame).tolist()}
uvicorn.run(app, port=int(sys.argv[1]), access_log=False, log_level="warning")
"""
BENTO = """
import bentoml, joblib, os, pandas
pipeline = joblib.load(os.environ["MODEL"])
@bentoml.service(workers=1, metrics={"enabled": False}, logging={"access": {"enabled": False}})
class Flights:
    @bentoml.api
    def predict(self, rows: list[dict]) -> dict:
        frame = pandas.DataFrame(rows)
        return {"predictions": pipeline.predict(frame).tolist(), "probabilities": pipeline.predict_proba(frame).tolist()}
"""
MLSERVER = """
import joblib, os, pandas
from mlserver import MLModel
from mlserver.codecs import PandasCodec, NumpyCodec
from mlserver.types import InferenceResponse
class Flights(MLModel):
    async def load(self):
        self.pipeline = joblib.load(os.environ["MODEL"])
        return True
    async def predict(self, payload):
        frame = PandasCodec.decode_request(payload)
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("predictions", self.pipeline.predict(frame)), NumpyCodec.encode_output("probabilities", self.pipeline.predict_proba(frame))])
"""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def mlflow_model(pipeline: Any, folder: Path) -> Path:
    """The pipeline as `mlflow models serve` wants it."""
    import mlflow

    target = folder / "mlflow"
    if not target.exists():
        mlflow.sklearn.save_model(
            pipeline, target, serialization_format="cloudpickle", pip_requirements=["scikit-learn"]
        )
    return target


def environment(name: str) -> Path | None:
    """The Python of a peer's own environment, made if need be; None, with a line that says why, if it cannot be."""
    home = Path(".serving-peers") / name
    python = home / "bin/python"
    if not (home / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        command = [python, "-m", "pip", "install", "-q", *PEERS[name], "scikit-learn", "pandas", "joblib"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name}: skipped, it cannot be installed: {done.stderr.strip().splitlines()[-1][:200]}")
            return None
        (home / "installed").touch()
    return python.absolute()


def portable_model(python: Path, source: Path, folder: Path, name: str) -> Path:
    """A model that the peer's environment loads: trained there again if its scikit-learn is another."""
    target = folder / f"{name}.joblib"
    script = "import sys, joblib, warnings; warnings.simplefilter('error'); joblib.dump(joblib.load(sys.argv[1]), sys.argv[2])"
    done = subprocess.run([python, "-c", script, source, target], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} has another scikit-learn: {done.stderr.strip().splitlines()[-1][:300]}")
    return target


def commands(
    peer: str, bundle: Any, pipeline: Any, folder: Path, port: int
) -> tuple[list[Any], dict[str, str], Path] | None:
    """How a server is started: command, variables, folder; None if it cannot be."""
    own = {"echo": ECHO, "ours": OURS, "naive": NAIVE}
    if peer in own:
        return [sys.executable, "-c", own[peer], str(port), str(bundle.path)], {}, folder
    if peer == "mlflow":
        target = mlflow_model(pipeline, folder)
        script = Path(sys.executable).with_name("mlflow")
        return (
            [script, "models", "serve", "-m", target, "-p", str(port), "--env-manager", "local", "--workers", "1"],
            {},
            folder,
        )
    python = environment(peer)
    if python is None:
        return None
    model = portable_model(python, bundle.path / "model.pkl", folder, peer)
    home = folder / peer
    home.mkdir(exist_ok=True)
    if peer == "bentoml":
        (home / "service.py").write_text(BENTO)
        return (
            [python.with_name("bentoml"), "serve", "service:Flights", "--port", str(port)],
            {"MODEL": str(model)},
            home,
        )
    (home / "flights.py").write_text(MLSERVER)
    ports = {
        "http_port": port,
        "grpc_port": free_port(),
        "metrics_port": free_port(),
        "parallel_workers": 0,
        "debug": False,
    }
    (home / "settings.json").write_text(json.dumps({"host": "127.0.0.1", **ports}))
    (home / "model-settings.json").write_text(json.dumps({"name": "flights", "implementation": "flights.Flights"}))
    return [python.with_name("mlserver"), "start", "."], {"MODEL": str(model)}, home


def request(peer: str, rows: list[dict[str, Any]], schema: Any) -> tuple[str, Any]:
    """Path and body of a request for some rows, as each server likes them best."""
    match peer:
        case "ours" | "echo":
            columns = {name: [row[name] for row in rows] for name in schema.names}
            return "/predict", rows[0] if len(rows) == 1 else {"columns": columns}
        case "naive" | "bentoml":
            return "/predict", {"rows": rows}
        case "mlflow":
            return "/invocations", {
                "dataframe_split": {
                    "columns": list(schema.names),
                    "data": [[row[name] for name in schema.names] for row in rows],
                }
            }
    kinds = {"integer": "INT64", "number": "FP64", "string": "BYTES"}
    inputs = [
        {
            "name": each.name,
            "shape": [len(rows), 1],
            "datatype": kinds[each.kind],
            "data": [row[each.name] for row in rows],
        }
        | ({"parameters": {"content_type": "str"}} if each.kind == "string" else {})
        for each in schema.columns
    ]
    return "/v2/models/flights/infer", {"parameters": {"content_type": "pd"}, "inputs": inputs}


@contextlib.contextmanager
def running(peers: list[str], bundle: Any, pipeline: Any, folder: Path) -> Iterator[dict[str, str]]:
    """Start the servers and wait until each answers; yields their addresses."""
    started: dict[str, tuple[subprocess.Popen[bytes], str, Path]] = {}
    try:
        for peer in peers:
            port = free_port()
            found = commands(peer, bundle, pipeline, folder, port)
            if found is None:
                continue
            command, variables, home = found
            log = folder / f"{peer}.log"
            with log.open("wb") as output:
                process = subprocess.Popen(
                    list(map(str, command)), cwd=home, env=os.environ | variables, stdout=output, stderr=output
                )
            started[peer] = (process, f"http://127.0.0.1:{port}", log)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for peer, (process, url, log) in started.items():
            path, body = request(peer, bundle.golden["rows"][:1], bundle.schema)
            sent = urllib.request.Request(url + path, json.dumps(body).encode(), {"content-type": "application/json"})
            deadline = time.monotonic() + 180
            while True:
                try:
                    opener.open(sent, timeout=10).read()
                    break
                except urllib.error.HTTPError as error:
                    raise SystemExit(f"{peer} answered {error.code}: {error.read()[:500].decode()}") from error
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise SystemExit(f"{peer} did not start:\n{log.read_text()[-1500:]}") from None
                    time.sleep(0.2)
        yield {peer: url for peer, (_, url, _) in started.items()}
    finally:
        for process, _, _ in started.values():
            process.terminate()
        for process, _, _ in started.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


# The measurement


def fitted_model(name: str) -> tuple[Any, Any]:
    """The pipeline of the flights of 2013 with a forest of 100 trees or a logistic regression, and rows that it has not seen."""
    from compile import flights_of_2013

    pipeline, held_out = flights_of_2013()
    if name == "linear":
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import Pipeline

        late = pipeline.predict(held_out)
        pipeline = Pipeline([("prepare", pipeline[0]), ("model", LogisticRegression(max_iter=1000))]).fit(
            held_out, late
        )
    return pipeline, held_out


def bundle_of(name: str, folder: Path) -> tuple[Any, Any]:
    """A bundle of the model, as a notebook would export it."""
    from notebook_to_prod.package.session import start

    os.environ["N2P_HOME"] = str(folder / "store")
    pipeline, held_out = fitted_model(name)
    late = pipeline.predict(held_out)
    return start(seed=7).export(pipeline, held_out[:15_000], late[:15_000], held_out[15_000:], late[15_000:]), pipeline


def best(call: Any, number: int) -> float:
    """Microseconds of a call, the best of some."""
    found = []
    for _ in range(9):
        start = time.perf_counter()
        for _ in range(number):
            call()
        found.append((time.perf_counter() - start) / number * 1e6)
    return min(found)


def where_time_goes(bundle: Any, rates: dict[str, float]) -> str:
    """Microseconds of a row in each part of our service, alone and with 31 others."""
    from notebook_to_prod.package.bundle import Prediction
    from notebook_to_prod.serve.batch import Model
    from notebook_to_prod.serve.predictor import load_predictor

    model = Model(load_predictor(bundle.path, name="flights", version="1"))
    rows = bundle.golden["rows"]
    bodies = [json.dumps(row).encode() for row in rows]
    read = [model.decode(body)[0] for body in bodies]  # type: ignore[index]
    together = [read[place % len(read)] for place in range(CONNECTIONS)]
    said = Prediction([bundle.golden["predictions"][0]], [bundle.golden["probabilities"][0]])
    alone = [
        best(lambda: model.decode(bodies[0]), 500),
        best(lambda: model._by_plan(read[:1]), 50),
        best(lambda: model.encode(said), 500),
    ]
    batch = [alone[0], best(lambda: model._by_plan(together), 20) / CONNECTIONS, alone[2]]
    protocol, whole = 1e6 / rates["echo"], 1e6 / rates["ours"]
    lines = [
        ["alone", *(f"{each:.1f}" for each in alone), "", ""],
        [
            "of 32",
            *(f"{each:.1f}" for each in batch),
            f"{protocol:.1f}",
            f"{max(0.0, whole - protocol - sum(batch)):.1f}",
        ],
    ]
    return table(["µs a row", "decode", "score", "encode", "protocol (echo)", "the rest"], lines)


def measure(name: str, peers: list[str], seconds: float, rounds: int) -> bool:
    """Print the tables of one model; whether it holds the limits."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundle, pipeline = bundle_of(name, folder)
        golden = bundle.golden
        rows = golden["rows"]
        measured: dict[str, list[dict[str, float]]] = {}
        with running(["echo", "ours", *peers], bundle, pipeline, folder) as urls:
            usable = [place for place, row in enumerate(rows) if None not in row.values()]  # MLServer has no null
            chosen = [rows[place] for place in usable]
            expected = [golden["predictions"][place] for place in usable]
            for number in range(-1, rounds):
                for peer, url in urls.items():
                    path, _ = request(peer, chosen[:1], bundle.schema)
                    bodies = [json.dumps(request(peer, [row], bundle.schema)[1]) for row in chosen]
                    many = [
                        json.dumps(
                            request(peer, [chosen[place % len(chosen)] for place in range(MANY)], bundle.schema)[1]
                        )
                    ]
                    check = None if peer == "echo" else expected
                    load = {"connections": CONNECTIONS, "seconds": WARM if number < 0 else seconds}
                    busy = ask(folder, url=url, path=path, bodies=bodies, check=check, **load)
                    if number < 0:
                        continue
                    lone = ask(
                        folder, url=url, path=path, bodies=bodies, check=check, connections=1, seconds=seconds / 2
                    )
                    batch = ask(
                        folder,
                        url=url,
                        path=path,
                        bodies=many,
                        check=check and check[:1],
                        connections=1,
                        seconds=seconds / 2,
                    )
                    result = {
                        "rate": busy["rate"],
                        "p50": lone["p50"],
                        "p99": lone["p99"],
                        "rows": batch["rate"] * MANY,
                    }
                    measured.setdefault(peer, []).append(result)
        middle = {
            peer: {key: statistics.median(each[key] for each in found) for key in found[0]}
            for peer, found in measured.items()
        }
        spent = where_time_goes(bundle, {peer: found["rate"] for peer, found in middle.items()})

    def ratio(key: str, peer: str) -> float:
        return statistics.median(
            ours[key] / theirs[key] for ours, theirs in zip(measured["ours"], measured[peer], strict=True)
        )

    lines, held = [], True
    for peer, found in middle.items():
        cells = [
            peer,
            f"{found['rate']:,.0f}",
            f"{found['p50'] * 1e6:,.0f}",
            f"{found['p99'] * 1e6:,.0f}",
            f"{found['rows']:,.0f}",
        ]
        if peer == "ours":
            lines.append([*cells, "", "", ""])
            continue
        wanted = {"echo": (0.5, 3.0, None)}.get(peer, (LIMITS[name], None, 3.0))
        got = (
            ratio("rate", peer),
            ratio("p50", peer) if peer == "echo" else None,
            None if peer == "echo" else ratio("rows", peer),
        )
        for place, (value, limit) in enumerate(zip(got, wanted, strict=True)):
            good = value is None or limit is None or (value <= limit if place == 1 else value >= limit)
            held = held and good
            shown = (
                ""
                if value is None
                else f"{value:,.2f} ({'at most' if place == 1 else 'at least'} {limit:g}{'' if good else ': MISSED'})"
            )
            cells.append(shown)
        lines.append(cells)
    header = [
        name,
        "requests/s ×32",
        "p50 µs ×1",
        "p99 µs ×1",
        f"rows/s ×{MANY:,}",
        "ours : its requests",
        "ours : its p50",
        "ours : its rows",
    ]
    print(table(header, lines), spent, sep="\n\n", end="\n\n", flush=True)
    return held


def main() -> None:
    """Measure, print, and exit with 1 if a limit is missed."""
    if sys.argv[1:2] == ["--client"]:
        client(sys.argv[2])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[*LIMITS], choices=[*LIMITS])
    parser.add_argument(
        "--peers", default="here", choices=["none", "here", "all"], help="here: naive FastAPI and MLflow"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of load on each server in each round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    peers = {"none": [], "here": ["naive", "mlflow"], "all": [*PEERS]}[options.peers]
    held = [measure(name, peers, options.seconds, options.rounds) for name in options.models]
    raise SystemExit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
