"""Every configuration composes; every mistake in one is a line that helps."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from dembench.harness.compose import ConfigError, check_signatures, compose, header, options, read_option, to_arguments
from dembench.harness.sweeps import expand, read_sweep

PER_TASK = ("method", "model", "data", "protocol")
EVERY = [(task, group, name) for task in options("task") for group in PER_TASK for name in options(group, task)]
EVERY = [choice for choice in EVERY if choice[2] != "own"]  # has no network until one is named
EVERY += [("tta", "loss", name) for name in options("loss")]


@pytest.mark.parametrize(("task", "group", "name"), EVERY)
def test_every_choice_composes_and_fits_what_it_builds(task: str, group: str, name: str) -> None:
    cfg = compose({"task": task, group: name}, complete=False)
    assert cfg.choices[group] == name
    for key in OmegaConf.missing_keys(cfg):  # what the user has to give, such as a folder
        if not key.startswith("task."):
            OmegaConf.update(cfg, key, 1 if key.endswith(".steps") else "x")
    check_signatures({part: OmegaConf.to_container(cfg[part], resolve=True) for part in (group, "task")})


@pytest.mark.parametrize(("task", "group", "name"), EVERY)
def test_every_file_says_what_it_is(task: str, group: str, name: str) -> None:
    assert header(read_option(group, name, task), "About")


def test_names_of_the_specification_are_there() -> None:
    assert {"source", "norm", "tent"} <= set(options("method", "tta"))
    assert {"em", "dem", "adadem"} <= set(options("loss"))
    assert {"single_domain", "continual"} <= set(options("protocol", "tta"))
    assert {"digits", "cifar10c", "cifar10c_generated", "cifar10_jpeg"} <= set(options("data", "tta"))
    assert {"cifar_resnet20", "digits_convnet", "digits_transformer", "torchvision", "timm"} <= set(
        options("model", "tta")
    )


@pytest.mark.parametrize("name", ["source", "norm", "tent"])
def test_methods_are_built_without_a_model(name: str) -> None:
    cfg = compose({"method": name})
    assert callable(instantiate(cfg.method, loss=instantiate(cfg.loss)))


@pytest.mark.parametrize("protocol", ["single_domain", "continual"])
def test_protocols_are_built(protocol: str) -> None:
    built = instantiate(compose({"protocol": protocol, "seed": 7}).protocol)
    assert built.reset is (protocol == "single_domain")
    assert (built.severities, built.batch_size, built.order_seed) == ((5,), 200, 7)


@pytest.mark.data
@pytest.mark.parametrize("model", ["cifar_resnet20", "cifar_resnet32", "cifar_resnet44", "cifar_resnet56"])
def test_models_of_the_data_folder_are_built(model: str) -> None:
    assert instantiate(compose({"model": model}).model).weights_id


@pytest.mark.data
def test_images_of_the_data_folder_are_found() -> None:
    instantiate(compose({"data": "cifar10_jpeg", "data.num_images": 20}).data).check()


def test_command_line_and_mapping_agree() -> None:
    words = {
        "method": "tent",
        "method.lr": 3e-4,
        "loss": "dem",
        "loss.alpha": 0.0,
        "protocol.corruptions": ["fog"],
        "seed": 2,
    }
    assert to_arguments(words)[1] == "method.lr=0.0003"
    assert compose(to_arguments(words)) == compose(words)


def test_groups_override_the_defaults_of_the_task_and_values_their_files() -> None:
    cfg = compose(["method=tent", "method.lr=1e-2", "protocol=continual", "loss=dem", "loss.tau=1.4", "seed=3"])
    assert cfg.method.lr == 0.01
    assert cfg.protocol.reset is False
    assert cfg.protocol.order_seed == cfg.task.seed == 3
    assert (cfg.loss.tau, cfg.loss.alpha) == (1.4, 1.0)
    assert dict(cfg.choices)["method"] == "tent"


def test_full_group_names_are_taken_too() -> None:
    assert compose(["method=tta/norm"]) == compose(["method=norm"])


def test_an_integer_for_a_number_is_that_number() -> None:
    assert isinstance(compose(["loss=dem", "loss.tau=1"]).loss.tau, float)


def test_composing_twice_gives_independent_configurations() -> None:
    first = compose(["seed=1"])
    first.method.lr = 5.0
    assert compose(["seed=1"]).method.lr == 1e-3


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["method=tnet"], ["unknown method 'tnet'", "nearest: tent", "valid: ", "source, "]),
        (["loss=adaden"], ["unknown loss 'adaden'", "nearest: adadem", "dem, dem_star, em"]),
        (["task=tta2"], ["unknown task", "nearest: tta"]),
        (["protocol=continuous"], ["unknown protocol", "nearest: continual"]),
        (["metod=tent"], ["unknown key 'metod'", "nearest: method", "valid: task, method, loss"]),
        (["method.learning_rate=1"], ["unknown key 'method.learning_rate'", "valid: method.optimizer, method.lr"]),
        (["loss=em", "loss.tau=1"], ["loss=em takes no values"]),
        (["sed=1"], ["unknown key 'sed'", "nearest: seed"]),
        (["+extra=1"], ["unknown key 'extra'"]),
        (["choices.method=x"], ["unknown key"]),
        (["task.seed=1"], ["unknown key"]),
        (["device=gpu"], ["unknown device 'gpu'", "valid: auto, cpu, cuda"]),
        (["precision=fp16"], ["unknown precision 'fp16'", "bf16"]),
        (["seed=x"], ["seed: expected a number, got 'x'"]),
        (["seed=-1"], ["seed: expected an integer from 0 to"]),
        (["seed=99999999999999999999"], ["seed: expected an integer from 0 to 2147483647"]),
        (["threads=0"], ["threads: expected an integer from 1 to"]),
        (["method.lr=fast"], ["method.lr: expected a number, got 'fast'"]),
        (["method.lr=true"], ["method.lr: expected a number, got True"]),
        (["method.steps=1.5"], ["method.steps: expected an integer, got 1.5"]),
        (["method.episodic=1"], ["method.episodic: expected true or false, got 1"]),
        (["seed=0,1"], ["several values", "dembench sweep"]),
        (["method"], ["expected key=value, got 'method'"]),
        (["~method=tent"], ["cannot use '~method=tent'"]),
        (["++foo=1"], ["cannot use '++foo=1'"]),
        (["out=["], ["cannot read 'out=['"]),
        (["method=[tent]"], ["method: expected a name"]),
        (["data=cifar10c_generated"], ["data=cifar10c_generated needs a value: data.source=...", "cs.toronto.edu"]),
        (["model=timm"], ["needs a value: model.arch=..."]),
    ],
)
def test_mistakes_are_one_line_that_helps(words: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(words)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_arguments_and_literal_values_are_checked_before_anything_is_built(stub_configs: Path) -> None:
    def check(*words: str) -> None:
        cfg = compose(["task=stub", "data.root=x", *words], stub_configs)
        check_signatures({"method": OmegaConf.to_container(cfg.method)})

    check()
    with pytest.raises(ConfigError, match="unknown method.speed 'fst'; nearest: fast; valid: slow, fast"):
        check("method.speed=fst")
    with pytest.raises(ConfigError, match="unknown argument of method 'rate'; .*valid: model, loss, speed, lr"):
        check("method=misspelt")
    with pytest.raises(ConfigError, match="unknown argument of method 'sped'; nearest: speed"):
        check("+method.sped=slow")


def test_a_target_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="loss: cannot import dembench.core.NoSuchLoss"):
        check_signatures({"loss": {"_target_": "dembench.core.NoSuchLoss"}})


def test_own_configurations_stand_beside_the_packages(stub_configs: Path) -> None:
    assert "plain" in options("loss", config_dir=stub_configs)
    assert "adadem" in options("loss", config_dir=stub_configs)
    assert compose(["loss=plain"], stub_configs).loss._target_ == "dembench_stub.Loss"


def test_demo_sweep_compares_em_with_adadem_in_every_task() -> None:
    losses: dict[str, set[str]] = {}
    for words in expand(read_sweep("demo")):
        compose(words)
        losses.setdefault(words["task"], set()).add(words["loss"])
    assert set(losses) == set(options("task"))
    assert all({"em", "adadem"} <= found for found in losses.values())


def test_cifar_sweep_is_what_it_says() -> None:
    runs = expand(read_sweep("cifar10_jpeg"))
    assert len(runs) == 2 * 2 * 3 + 3 * 5 * 2 * 3
    tent = [words for words in runs if words["method"] == "tent"]
    assert {words["method.lr"] for words in tent} == {1e-4, 3e-4, 1e-3, 3e-3, 1e-2}
    pairs = {(w["protocol"], w["loss.tau"], w["loss.alpha"]) for w in tent if w["loss"] == "dem"}
    assert pairs == {("single_domain", 1.1, 0.0), ("continual", 1.4, 1.4)}
    assert {words["data.num_images"] for words in runs} == {2000}
    compose(runs[0])


def test_a_missing_folder_of_configurations_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="--config-dir: no folder .*nowhere"):
        options("loss", config_dir=tmp_path / "nowhere")


def test_own_configurations_may_not_have_the_name_of_the_packages(tmp_path):
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "em.yaml").write_text("_target_: core.DEM\n")
    with pytest.raises(ConfigError, match="loss/em.yaml is the name of a file of dembench too"):
        compose(["loss=em"], tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [1, 2\nb: {", "not valid YAML"), ("tau: 1.0\n", "loss: the configuration lacks _target_")],
)
def test_a_broken_file_of_ones_own_is_an_error_of_one_line(tmp_path, text, message):
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "mine.yaml").write_text(text)

    def check() -> None:
        check_signatures(OmegaConf.to_container(compose(["loss=mine"], tmp_path)))

    with pytest.raises(ConfigError, match=message) as caught:
        check()
    assert "\n" not in str(caught.value)
