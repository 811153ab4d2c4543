"""What `docker.check` reads out of Dockerfiles and does with it; the check itself takes minutes and the network."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from pathlib import Path

import pytest

from docker.compose import ComposeError, read_compose
from docker.dockerfile import DockerfileError, Stage, expand, instructions, parse, read_dockerfile
from docker.replica import IMAGE_USER, Replica

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


def test_a_file_is_read_with_its_stages_arguments_and_variables() -> None:
    text = """
# a comment
FROM base:1 AS build
ARG GROUP=cpu
ENV A=1 B="two words" PATH=/opt/bin:$PATH
WORKDIR /opt/x
RUN echo "${GROUP}" \\
    # in between
    && echo done
FROM other:2
COPY --from=build /opt /opt
USER 7:7
EXPOSE 80
HEALTHCHECK --interval=3s --timeout=1s CMD ["a", "b c"]
ENTRYPOINT ["serve"]
CMD ["--fast"]
STOPSIGNAL SIGINT
"""
    build, image = parse(text, {"GROUP": "gpu"})
    assert (build.image, build.name, build.folder) == ("base:1", "build", "/opt/x")
    assert build.environment == {"A": "1", "B": "two words", "PATH": "/opt/bin:$PATH"}
    assert [step.kind for step in build.steps] == ["WORKDIR", "RUN"]
    assert build.steps[1].text == 'echo "${GROUP}" && echo done'
    assert build.steps[1].variables["GROUP"] == "gpu"
    assert image.steps[0].options == {"from": "build"}
    assert (image.user, image.ports, image.stop_signal) == ("7:7", ["80"], "SIGINT")
    assert image.healthcheck == ({"interval": "3s", "timeout": "1s"}, ["a", "b c"])
    assert (image.entrypoint, image.command) == (["serve"], ["--fast"])
    # Each stage begins anew, with the defaults of Docker.
    assert image.environment == {}
    assert (build.user, build.stop_signal, build.healthcheck) == ("root", "SIGTERM", None)
    assert parse("FROM x\nARG A=1\nENV B=$A", {})[0].environment == {"B": "1"}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("RUN true", "before FROM"),
        ("", "no FROM"),
        ("FROM x\nADD a b", "unknown instruction 'ADD'"),
        ("FROM x\nCMD serve", "wanted"),
        ('FROM x\nCMD "serve"', "wanted"),
        ("FROM x\nENV A 1", "NAME=VALUE"),
        ("FROM x\nENV A=$B", "has no value"),
        ("FROM x\nRUN a \\", "goes on"),
    ],
)
def test_what_is_not_understood_is_refused(text: str, what: str) -> None:
    with pytest.raises(DockerfileError, match=what):
        parse(text, {})


def test_variables() -> None:
    assert expand("${A}b$A-$B", {"A": "1", "B": ""}) == "1b1-"
    assert list(instructions("from a\nRun b  c")) == [("FROM", "a"), ("RUN", "b  c")]


def test_compose_variables(tmp_path: Path) -> None:
    file = tmp_path / "c.yml"
    file.write_text(
        "services:\n  a: {x: '${A:-d}', y: ['$$A', '${B}'], z: 1}\n  b: {extends: {service: a}, z: 2}\n", "utf-8"
    )
    services = read_compose(file, {"A": "", "B": "b"})["services"]
    assert services == {"a": {"x": "d", "y": ["$A", "b"], "z": 1}, "b": {"x": "d", "y": ["$A", "b"], "z": 2}}
    file.write_text("services: {a: {x: '${A:?say it}'}}", "utf-8")
    with pytest.raises(ComposeError, match="variable A is missing a value: say it"):
        read_compose(file, {"A": ""})


def test_a_replica_does_what_the_file_says_below_its_folder_and_nothing_to_the_system(tmp_path: Path) -> None:
    context, root = tmp_path / "context", tmp_path / "root"
    (context / "code").mkdir(parents=True)
    root.mkdir()
    (context / "code" / "a.txt").write_text("text", "utf-8")
    (context / ".dockerignore").write_text("*\n!code\n", "utf-8")
    untouched = tmp_path / "untouched"
    untouched.write_text("", "utf-8")
    text = f"""
FROM x
ARG WORD=hello
WORKDIR /opt/app
COPY code code
RUN python3 -c "print('$WORD')" > /opt/app/said && apt-get remove everything && rm -rf {untouched}
RUN install --directory --owner dvib /work/out
ENV PATH=/opt/bin:$PATH OUT=/work/out URL=http://127.0.0.1:1/work
"""
    said: list[str] = []
    stages = parse(text, {"WORD": "bye"})
    replica = Replica(root, context, sys.executable, said.append)
    replica.build(stages)
    assert (root / "opt/app/code/a.txt").read_text("utf-8") == "text"
    assert (root / "opt/app/said").read_text("utf-8") == "bye\n"
    assert untouched.exists()
    assert sum("left out" in line for line in said) == 2
    assert (root / "work/out").is_dir()
    environment = replica.environment(stages[0], {"MORE": "a=/opt/x,/opt/y"})
    assert environment == {
        "PATH": f"{root}/opt/bin:/usr/local/bin:/usr/bin:/bin",
        "OUT": f"{root}/work/out",
        "URL": "http://127.0.0.1:1/work",
        "MORE": f"a={root}/opt/x,{root}/opt/y",
    }
    before = replica.files("/work")
    (root / "work/out/new").write_text("", "utf-8")
    assert replica.files("/work") == before
    (root / "opt/app/said").write_text("other", "utf-8")
    assert replica.files("/work") != before
    with pytest.raises(DockerfileError, match="keeps it out of the context"):
        replica.build(parse("FROM x\nCOPY other .", {}))


def test_a_replica_runs_with_the_images_environment_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVIB_SERVE_PORT", "1")
    replica = Replica(tmp_path, ROOT, sys.executable, lambda _: None)
    stage = Stage("x", folder="/", environment={"A": "1"})
    code = (
        "import os, sys; sys.exit(10 * (os.environ['A'] + os.environ['B'] == '12') + ('DVIB_SERVE_PORT' in os.environ))"
    )
    assert replica.run(stage, ["python3", "-c", code], {"B": "2"}, 20) == 10
    assert replica.run(stage, ["sleep", "20"], {}, 0.1) == -signal.SIGKILL


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_images_are_pinned_run_as_a_user_and_leave_nothing_of_the_build(path: Path) -> None:
    stages = read_dockerfile(path)
    for stage in stages:
        assert re.fullmatch(r"[a-z/]+:\d+\.\d+\.\d+-[a-z0-9.-]+", stage.image), stage.image
        for step in stage.steps:
            for command in step.text.split("&&") if step.kind == "RUN" else ():
                words = shlex.split(command)
                if "pip" in words[0] and "install" in words:
                    assert {"--no-cache-dir", "--constraint", "constraints.txt"} <= set(words)
                if "apt-get" in words and "install" in words:
                    assert "--no-install-recommends" in words
                    assert "rm -rf /var/lib/apt/lists/*" in step.text
    image = stages[-1]
    assert image.user == f"{IMAGE_USER}:{IMAGE_USER}"
    assert any(f"useradd --system --uid {IMAGE_USER} " in step.text for step in image.steps)
    assert image.stop_signal == "SIGTERM"
    assert (image.healthcheck is None) == image.says_no_healthcheck
    # What the images copy is what the context lets in, and whole packages of the project.
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    copied = {
        source
        for stage in stages
        for step in stage.steps
        if step.kind == "COPY" and "from" not in step.options
        for source in step.text.split()[:-1]
    }
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)


def test_the_healthcheck_asks_the_port_that_is_served() -> None:
    image = read_dockerfile(ROOT / "docker/service.Dockerfile")[-1]
    assert image.healthcheck is not None
    options, command = image.healthcheck
    assert set(options) == {"interval", "timeout", "start-period", "retries"}
    compile(command[2], "HEALTHCHECK", "exec")
    assert "DVIB_SERVE_PORT" in command[2]
    assert image.ports == [image.environment["DVIB_SERVE_PORT"]]
    assert os.path.basename(command[0]) == "python"  # noqa: PTH119
