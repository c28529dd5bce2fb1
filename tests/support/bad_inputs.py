"""Bad inputs over all sub-commands, as data: words of a command line, and what its one line must say.

``@`` stands for the folder that ``make_things`` fills.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from dembench.harness import ranges
from dembench.harness.compose import compose

Row = tuple[str, str]

WORDS: list[Row] = [  # the command line itself
    ("rn", "unknown command 'rn'; nearest: run"),
    ("run metod=tent", "unknown key 'metod'; nearest: method"),
    ("run method=tnet", "unknown method 'tnet'; nearest: tent"),
    ("run method=", "unknown method ''"),
    ("run method=null", "method: expected a name"),
    ("run method=[tent,norm]", "method: expected a name"),
    ("run method=tent,norm", "gives several values; one run takes one"),
    ("run method=../tta/tent", "unknown method"),
    ("run method={}", "method: expected a name"),
    ("run task=ttta", "unknown task 'ttta'; nearest: tta"),
    ("run task=semi method=tent", "unknown method 'tent'"),
    ("run loss=emm", "unknown loss 'emm'; nearest: em"),
    ("run model=resnet", "unknown model"),
    ("run data=cifar", "unknown data"),
    ("run protocol=continuous", "unknown protocol 'continuous'; nearest: continual"),
    ("run tent", "expected key=value, got 'tent'"),
    ("run =", "unknown key ''"),
    ("run ==", "cannot"),
    ("run =1", "unknown key ''"),
    ("run seed", "expected key=value"),
    ("run seed=", "seed: expected a number"),
    ("run seed=one", "seed: expected a number"),
    ("run seed=1.5", "seed: expected an integer"),
    ("run seed=-1", "seed: expected an integer from 0 to 2147483647, got -1"),
    ("run seed=2147483648", "seed: expected an integer from 0 to 2147483647"),
    ("run seed=null", "seed: expected"),
    ("run seed=true", "seed: expected"),
    ("run seed=nan", "seed: expected"),
    ("run seed=0,1", "one run takes one"),
    ("run seed=[1]", "seed: expected"),
    ("run threads=0", "threads: expected an integer from 1 to 1024"),
    ("run threads=null", "threads: expected"),
    ("run threads=two", "threads: expected"),
    ("run out=null", "out: expected a folder"),
    ("run out=", "out: expected a folder"),
    ("run out=' '", "out: expected a folder"),
    ("run out=3", "out: expected a text, got 3"),
    ("run out=@/file.txt", "out: @/file.txt is not a folder"),
    ("run out=@/file.txt/a/b", "out: @/file.txt is not a folder"),
    ("run out=@/pipe", "out: @/pipe is not a folder"),
    ("sweep demo out=@/file.txt", "out: @/file.txt is not a folder"),
    ("tune method=tent out=@/file.txt", "out: @/file.txt is not a folder"),
    ("search method=tent out=@/file.txt", "out: @/file.txt is not a folder"),
    ("run out=[a]", "out: expected"),
    ("run force=1", "force: expected true or false"),
    ("run force=null", "force: expected true or false"),
    ("run progress=maybe", "progress: expected true or false"),
    ("run progress=null", "progress: expected true or false"),
    ("run device=gpu", "unknown device 'gpu'"),
    ("run device=null", "device"),
    ("run precision=fp16", "unknown precision 'fp16'"),
    ("run precision=null", "precision"),
    ("run part=half", "unknown part 'half'"),
    ("run part=null", "part"),
    ("run part=search search_share=0", "search_share: expected a number > 0 and < 1"),
    ("run part=search search_share=1.0", "search_share: expected a number > 0 and < 1"),
    ("run part=search search_share=null", "search_share: expected"),
    ("run part=search search_seed=-1", "search_seed: expected an integer >= 0"),
    ("run part=search search_seed=null", "search_seed: expected"),
    ("run logger=wand", "unknown logger 'wand'"),
    ("run logger=3", "logger"),
    ("run logger=[tensorboard,nope]", "logger"),
    ("run choices.method=tent", "unknown key"),
    ("run labels.loss=x", "unknown key"),
    ("run task.seed=1", "unknown key"),
    ("run task._target_=os.system", "unknown key"),
    ("run hydra.run.dir=x", "unknown key"),
    ("run ~method", "expected key=value"),
    ("run ~method.lr=1", "cannot use"),
    ("run ++method.lr=1", "cannot use"),
    ("run method@x=tent", "cannot use"),
    ("run +seed2=1", "unknown key"),
    ("run +method.foo=1", "unknown argument of method 'foo'"),
    ("run method=source +method.foo=1", "unknown argument of method 'foo'"),
    ("run task=semi +method.foo=1", "unknown argument of method 'foo'"),
    ("run task=semi method=vat +method.foo=1", "unknown argument of method 'foo'"),
    ("run task=segmentation +method.foo=1", "unknown argument of method 'foo'"),
    ("run task=segmentation method=adv_ent +method.foo=1", "unknown argument of method 'foo'"),
    ("run task=minigrid +method.foo=1", "unknown argument of method 'foo'"),
    ("run task=prompt +method.foo=1", "unknown argument of method 'foo'"),
    ("run +loss.foo=1", "unknown argument of loss 'foo'"),
    ("run loss=none +loss.foo=1", "loss"),
    ("run +data.foo=1", "unknown argument of data 'foo'"),
    ("run +model.foo=1", "unknown argument of model 'foo'"),
    ("run +protocol.foo=1", "unknown argument of protocol 'foo'"),
    ("run method.learning_rate=1", "unknown key 'method.learning_rate'"),
    ("run method.lr.x=1", "unknown key"),
    ("run method.lr=null", "method.lr: expected a number, got null"),
    ("run method.lr=fast", "method.lr: expected a number"),
    ("run method.lr=[1]", "method.lr: expected a number"),
    ("run method.lr=true", "method.lr: expected a number"),
    ("run method.lr=inf", "method.lr: expected a finite number"),
    ("run method.lr=nan", "method.lr: expected a finite number"),
    ("run method.lr=1e999", "method.lr: expected a finite number"),
    ("run method.lr=0", "method.lr: expected a number > 0"),
    ("run method.optimizer=adamw", "unknown method.optimizer 'adamw'"),
    ("run method.optimizer=null", "method.optimizer"),
    ("run method.preset=mine", "unknown method.preset 'mine'"),
    ("run method.episodic=1", "method.episodic: expected true or false"),
    ("run method.episodic=null", "method.episodic: expected true or false"),
    ("run method.steps=null", "method.steps: expected an integer, got null"),
    ("run method.clustering=3", "method.clustering: expected key: value pairs"),
    ("run method.clustering.augment=flip", "augmentation"),
    ("run method.clustering.similarity=0", "similarity"),
    ("run method.clustering.accumulate=many", "accumulate"),
    ("run method._target_=os.system", "method"),
    ("run loss=dem loss.tau=0", "loss.tau: expected a number > 0, got 0.0"),
    ("run loss=dem loss.tau=-1", "loss.tau: expected a number > 0, got -1.0"),
    ("run loss=dem loss.tau=null", "loss.tau: expected a number, got null"),
    ("run loss=dem loss.alpha=null", "loss.alpha: expected a number, got null"),
    ("run loss=dem_star", "part"),
    ("run loss=dem_star part=rest", "no search result for this configuration"),
    ("run loss=adadem +loss.momentum=2", "loss.momentum: expected a number > 0 and <= 1"),
    ("run loss=adadem +loss.momentum=0", "loss.momentum: expected a number > 0 and <= 1"),
    ("run loss=em loss.tau=2", "takes no values"),
    ("run loss=none", "lowers a loss and was given none"),
    ("run protocol.severity=9", "protocol.severity: expected an integer from 1 to 5"),
    ("run protocol.severity=[]", "protocol.severity: expected one or more values"),
    ("run protocol.severity=[1,9]", "protocol.severity: expected an integer from 1 to 5"),
    ("run protocol.severity=high", "severity"),
    ("run protocol.severity=null", "severity"),
    ("run protocol.corruptions=[]", "corruption"),
    ("run protocol.corruptions=[rain]", "corruption"),
    ("run protocol.corruptions=3", "corruption"),
    ("run protocol.order_seed=-4", "protocol.order_seed: expected an integer >= 0, got -4"),
    ("run protocol.batch_size=null", "protocol.batch_size: expected an integer, got null"),
    ("run protocol.reset=1", "protocol.reset: expected true or false"),
    ("run protocol.delta=0.5", "delta belongs to label_order=dirichlet"),
    ("run protocol.window=1", "window"),
    ("run protocol=dirichlet protocol.delta=0", "protocol.delta: expected a number > 0"),
    ("run protocol=dirichlet protocol.delta=null", "delta"),
    ("run protocol=long_tail protocol.rho=0.5", "protocol.rho: expected a number >= 1"),
    ("run data.num_images=abc", "data.num_images: expected an integer or null, got abc"),
    ("run data.num_images=2.5", "data.num_images: expected an integer"),
    ("run data.num_images=0", "data.num_images: expected an integer >= 1"),
    ("run data.num_images=true", "data.num_images: expected an integer or null"),
    ("run data.num_images=100000", "num_images"),
    ("run data=cifar10c", "no"),
    ("run data=cifar10c data.root=@/nothing", "@/nothing"),
    ("run data=cifar10c_generated", "needs a value: data.source=..."),
    ("run data=cifar10c_generated data.source=@/nothing", "@/nothing"),
    ("run data=image_folder", "needs a value: data.root=..."),
    ("run data=image_folder data.root=null model=torchvision", "model.arch=..."),
    ("run data=image_folder data.root=${x} model=torchvision model.arch=resnet18", "x"),
    ("run data=image_folder data.root=${seed model=torchvision", "cannot read"),
    ("run data=image_folder data.root='${oc.env:NOT_THERE}' model=torchvision model.arch=resnet18", "NOT_THERE"),
    ("run model=torchvision", "arch"),
    ("run model=torchvision model.arch=resnet", "unknown torchvision model 'resnet'"),
    ("run model=torchvision model.arch=googlenet", "googlenet"),
    ("run model=timm model.arch=nothing", "nothing"),
    ("run model=cifar_resnet20 model.depth=21", "depth"),
    ("run --frce", "unrecognized arguments: --frce"),
    ("run --config-dir", "--config-dir: expected one argument"),
    ("run --config-dir @/nothing", "--config-dir: no folder @/nothing"),
    ("run --config-dir @/file.txt", "--config-dir: no folder @/file.txt"),
    ("run method.lr=1e-3 method.lr=fast", "method.lr: expected a number"),
    ("run 'method.lr=\"1'", "cannot read"),
    ("run data.root={", "cannot read"),
    ("run data.root=\x00", "data.root"),
    ("run \ud800=1", "cannot read '\\ud800=1'"),
    # other tasks
    ("run task=minigrid method.gamma=2", "method.gamma: expected a number from 0 to 1, got 2.0"),
    ("run task=minigrid method.clip_range=-1", "method.clip_range: expected a number > 0"),
    ("run task=minigrid method.n_envs=0", "method.n_envs: expected an integer >= 1"),
    ("run task=minigrid method.batch_size=1", "one sample has no advantage to normalise"),
    ("run task=minigrid method.ent_coef=-1", "method.ent_coef: expected a number >= 0"),
    ("run task=minigrid method.max_grad_norm=0", "method.max_grad_norm: expected a number > 0"),
    ("run task=minigrid method.gae_lambda=1.1", "method.gae_lambda: expected a number from 0 to 1"),
    ("run task=minigrid method.update=never", "update"),
    ("run task=minigrid method.policy_kwargs=3", "policy_kwargs"),
    ("run task=minigrid +method.policy_kwargs.net=3", "net"),
    ("run task=minigrid data=env", "needs a value"),
    ("run task=minigrid data=env data.id=Nope-v0 data.steps=1000", "Nope-v0"),
    ("run task=minigrid data=env data.id=null data.steps=1000", "data.id: expected a text, got null"),
    ("run task=minigrid data=env data.id=MiniGrid-Empty-5x5-v0 data.steps=0", "data.steps: expected an integer >= 1"),
    ("run task=minigrid protocol.episodes=5", "expected episodes >= 10"),
    ("run task=minigrid protocol.eval_seed=0", "protocol.eval_seed: expected an integer >= 1"),
    ("run task=minigrid protocol.seed_spacing=2", "seed_spacing"),
    ("run task=minigrid precision=bf16", "fp32"),
    ("run task=minigrid seed=20000", "seed"),
    ("run task=semi protocol.batch_size=0", "protocol.batch_size: expected an integer >= 1"),
    ("run task=semi protocol.devices=0", "protocol.devices: expected an integer >= 1"),
    ("run task=semi protocol.devices=9", "devices"),
    ("run task=semi protocol.schedule=linear", "schedule"),
    ("run task=semi protocol.optimizer=lbfgs", "optimizer"),
    ("run task=semi method.loss_weight=-1", "method.loss_weight: expected a number >= 0"),
    ("run task=semi method.loss_ramp=2", "method.loss_ramp: expected a number from 0 to 1"),
    ("run task=semi method.loss_view=dim", "loss_view"),
    ("run task=semi method=fixmatch method.threshold=2", "method.threshold: expected a number from 0 to 1"),
    ("run task=semi method=freematch method.momentum=-1", "method.momentum: expected a number from 0 to 1"),
    ("run task=semi data.labels_per_class=0", "data.labels_per_class: expected an integer >= 1"),
    ("run task=semi data.labels_per_class=100000", "class 0 has"),
    ("run task=semi data.split_seed=-1", "data.split_seed: expected an integer >= 0"),
    ("run task=semi data=cifar10", "data"),
    ("run task=semi data=cifar10 data.images.root=@/nothing", "@/nothing"),
    ("run task=semi data=folders", "needs a value"),
    ("run task=longtail data.rho=0.5", "data.rho: expected a number >= 1"),
    ("run task=longtail data.labelled_head=0", "data.labelled_head: expected an integer >= 1"),
    ("run task=longtail data.rho_unlabelled=0", "data.rho_unlabelled: expected a number > 0"),
    ("run task=segmentation data.size=[64]", "expected data.size as height and width, got [64]"),
    ("run task=segmentation data.size=[0,64]", "data.size: expected an integer >= 1"),
    ("run task=segmentation data.size=64", "data.size"),
    ("run task=segmentation data.target_style.haze=2", "data.target_style.haze: expected a number from 0 to 1"),
    ("run task=segmentation data.target_style.cast=[1,1]", "cast"),
    ("run task=segmentation data.target_style.gamma=0", "data.target_style.gamma: expected a number > 0"),
    ("run task=segmentation protocol.momentum=1.0", "protocol.momentum: expected a number >= 0 and < 1"),
    ("run task=segmentation protocol.horizon=1", "horizon"),
    ("run task=segmentation method.unit=miles", "unit"),
    ("run task=segmentation method.resolution=low", "resolution"),
    ("run task=segmentation data=camvid", "camvid"),
    ("run task=segmentation data=gta5", "needs a value"),
    ("run task=segmentation model=mmseg_config", "needs a value"),
    ("run task=segmentation model=mmseg_config model.config_file=@/nothing.py", "@/nothing.py"),
    ("run task=prompt protocol.block_size=0", "protocol.block_size: expected an integer >= 1"),
    ("run task=prompt protocol.views.count=0", "protocol.views.count: expected an integer >= 1"),
    ("run task=prompt protocol.views.flip=2.0", "protocol.views.flip: expected a number from 0 to 1"),
    ("run task=prompt protocol.views.scale=[0.0,1.0]", "protocol.views.scale: expected a number > 0 and <= 1"),
    ("run task=prompt protocol.encoding=zip", "encoding"),
    ("run task=prompt protocol.template=photo", "template"),
    ("run task=prompt method.selected=0", "method.selected: expected a number > 0 and <= 1"),
    ("run task=prompt method.aggregate=all", "aggregate"),
    ("run task=prompt data=imagenet", "needs a value"),
    # sweep
    ("sweep", "the following arguments are required: sweep"),
    ("sweep dmo", "unknown sweep 'dmo'; nearest: demo"),
    ("sweep study=nope", "unknown study 'nope'"),
    ("sweep @/nothing.yaml", "no sweep file @/nothing.yaml"),
    ("sweep @/folder.yaml", "@/folder.yaml"),
    ("sweep @/scalar.yaml", "@/scalar.yaml: expected"),
    ("sweep @/list.yaml", "@/list.yaml: expected"),
    ("sweep @/empty.yaml", "@/empty.yaml"),
    ("sweep @/binary.yaml", "@/binary.yaml"),
    ("sweep @/tab.yaml", "@/tab.yaml"),
    ("sweep @/other_key.yaml", "unknown key of sweep @/other_key.yaml 'grid'"),
    ("sweep @/base_list.yaml", "base must be a mapping"),
    ("sweep @/grid_map.yaml", "grids a list of mappings"),
    ("sweep @/no_runs.yaml", "no_runs.yaml: a sweep of no runs: grids is empty"),
    ("sweep @/no_values.yaml", "no_values.yaml: a sweep of no runs: seed is empty"),
    ("sweep @/paper.yaml", "paper must be a list of mappings"),
    ("sweep @/wrong_method.yaml --dry-run", "unknown method 'tnet'"),
    ("sweep @/wrong_number.yaml --dry-run", "method.lr: expected a number > 0"),
    ("sweep demo metod=x", "unknown key 'metod'"),
    ("sweep demo seed=-1 --dry-run", "seed: expected an integer"),
    ("sweep demo x", "expected key=value, got 'x'"),
    ("sweep demo --workers -1", "--workers: expected at least 0, got -1"),
    ("sweep demo --workers two", "--workers: invalid int value: 'two'"),
    ("sweep demo --retries -1", "--retries: expected at least 0"),
    ("sweep demo --retries many", "--retries: invalid int value"),
    ("sweep demo --engine cloud", "engine"),
    ("sweep demo --gpus x", "gpus"),
    ("sweep demo --gpus-per-run 0", "gpus-per-run"),
    ("sweep demo --gpus-per-run x", "gpus-per-run"),
    ("sweep demo --cpus-per-run -1", "cpus-per-run"),
    ("sweep demo --config-dir @/nothing", "--config-dir: no folder @/nothing"),
    # search
    ("search method=norm", "method=norm lowers no loss"),
    ("search method=source", "method=source lowers no loss"),
    ("search method=t3a", "method=t3a lowers no loss"),
    ("search task=semi method=supervised", "method=supervised lowers no loss"),
    ("search task=segmentation method=source_only", "method=source_only lowers no loss"),
    ("search task=prompt method=zero", "method=zero lowers no loss"),
    ("search task=prompt method=zero_shot", "method=zero_shot lowers no loss"),
    ("search method=tent --trials -1", "expected trials >= 2, got -1"),
    ("search method=tent --trials 1", "expected trials >= 2, got 1"),
    ("search method=tent --trials x", "--trials: invalid int value"),
    ("search method=tent --startup 0", "expected startup >= 1"),
    ("search method=tent --sampler-seed -1", "seed >= 0"),
    ("search method=tent --seeds x", "--seeds: expected whole numbers and commas"),
    ("search method=tent --seeds 0,0", "different seeds"),
    ("search method=tent --seeds -1", "different seeds >= 0"),
    ("search method=tent --seeds ''", "--seeds"),
    ("search method=tent --space wide", "unknown space 'wide'"),
    ("search method=tent --order any", "unknown order 'any'"),
    ("search method=tent --metric speed", "unknown metric 'speed'"),
    ("search method=tent loss=em", "a search sets loss, part, seed itself"),
    ("search method=tent seed=1", "a search sets loss, part, seed itself"),
    ("search method=tent part=all", "a search sets loss, part, seed itself"),
    ("search method=tent loss.tau=1", "a search sets loss, part, seed itself"),
    ("search method=tent out=null", "out: expected a folder"),
    # tune
    ("tune", "the following arguments are required: key=value"),
    ("tune method=tnet", "unknown method 'tnet'"),
    ("tune method=tent --trials 0", "trials"),
    ("tune method=tent --trials x", "--trials: invalid int value"),
    ("tune method=tent --sampler grid", "sampler"),
    ("tune method=tent --seeds x", "--seeds: expected whole numbers and commas"),
    ("tune method=tent --seeds 0,0", "different seeds"),
    ("tune method=tent --workers -1", "--workers: expected at least 0, got -1"),
    ("tune method=tent --workers x", "--workers: invalid int value"),
    ("tune method=tent --metric speed", "unknown metric 'speed'"),
    ("tune method=norm", "method=norm lowers no loss"),
    ("tune method=tent part=search", "part=search: a tuning is judged on part=rest"),
    ("tune method=tent loss=dem_star", "loss=dem_star has its own search"),
    ("tune method=tent tuned=null", "nothing to tune"),
    ("tune method=tent tuned=best", "unknown tuned 'best'"),
    ("tune method=tent --space method.lr=1", "method.lr"),
    ("tune method=tent --space method.lr=2:1", "expected finite LOW < HIGH"),
    ("tune method=tent --space method.lr=0:1:log", "LOW > 0"),
    ("tune method=tent --space method.lr=1:2:cubic", "unknown kind of range"),
    ("tune method=tent --space method.steps=1.5:2:int", "expected whole numbers"),
    ("tune method=tent --space method.foo=1:2", "--space method.foo: no run of this tuning has such a number"),
    ("tune method=tent,eata --space loss.tau=1:2", "--space loss.tau: no run of this tuning has such a number"),
    ("tune method=tent --space method.optimizer=1:2", "--space method.optimizer: no run of this tuning has"),
    ("tune method=tent --space seed=1:2", "--space seed: no run of this tuning has such a number"),
    # data, list
    ("data", "the following arguments are required"),
    ("data get cifar10c", "invalid choice: 'get'"),
    ("data fetch cifar", "unknown dataset 'cifar'"),
    ("data fetch digits", "digits needs no download"),
    ("data fetch imagenet_c", "is not fetched by this command"),
    ("data fetch cifar10c --to @/file.txt", "@/file.txt"),
    ("list modle", "unknown group 'modle'; nearest: model"),
    ("list --task ttt", "unknown task 'ttt'; nearest: tta"),
    ("list --config-dir @/nothing", "--config-dir: no folder @/nothing"),
    ("list @/nothing", "unknown group"),
    ("list @/runs_empty", "no"),
    ("list @/file.txt", "@/file.txt"),
    # report, export, compare
    ("report", "the following arguments are required: RUNS"),
    ("report @/nothing", "no folder or file @/nothing"),
    ("report @/runs_empty --out @/out", "no"),
    ("report @/file.txt --out @/out", "@/file.txt"),
    ("report @/binary.jsonl.gz --out @/out", "@/binary.jsonl.gz"),
    ("report @/cut.jsonl.gz --out @/out", "@/cut.jsonl.gz"),
    ("report @/bad.csv --out @/out", "@/bad.csv"),
    ("report @/binary.csv --out @/out", "@/binary.csv"),
    ("report @/runs_empty --figures -1", "expected --figures of 0 or more, got -1"),
    ("report @/runs_empty --figures x", "--figures: invalid int value"),
    ("report @/good --out @/file.txt", "@/file.txt"),
    ("report @/good --out @/out --readme @/nothing.md", "@/nothing.md"),
    ("report @/good --out @/out --readme @/binary", "@/binary is no text in UTF-8"),
    ("export", "the following arguments are required: --out"),
    ("evaluate", "the following arguments are required: RUN"),
    ("evaluate @/nothing", "@/nothing"),
    ("evaluate @/good", "@/good"),
    ("evaluate @/file.txt", "@/file.txt"),
    ("evaluate @/good/0123456789ab", "0123456789ab"),
    ("evaluate @/good/0123456789ab --weights x", "0123456789ab"),
    ("export @/good", "the following arguments are required: --out"),
    ("export @/nothing --out @/x.jsonl.gz", "@/nothing"),
    ("export @/runs_empty --out @/x.jsonl.gz", "no"),
    ("export @/good --out @/folder.yaml", "@/folder.yaml"),
    ("export @/good --out @/file.txt/x.gz", "@/file.txt"),
    ("compare", "the following arguments are required: A, B"),
    ("compare @/good", "the following arguments are required: B"),
    ("compare @/good @/nothing", "nothing"),
    ("compare @/nothing @/good", "nothing"),
    ("compare @/good @/runs_empty", "no"),
    ("compare a b c", "expected two sides"),
    ("compare loss=em loss=dem --runs @/nothing", "@/nothing"),
    ("compare loss=em loss=dem --runs @/good", "no"),
    ("compare los=em loss=dem --runs @/good", "los"),
    ("compare @/good @/good --metric speed", "same runs"),
    ("compare @/good @/good --json --csv", "not allowed with"),
    # suite, demo, figure, bench, check, kit
    ("suite nope", "unknown suite 'nope'"),
    ("suite quick --workers -1", "--workers: expected at least 0, got -1"),
    ("suite quick --only nope", "nope"),
    ("suite quick --data nope --dry-run", "nope"),
    ("suite quick x", "expected key=value"),
    ("suite quick seed=-1 --dry-run", "seed: expected an integer"),
    ("suite paper nope", "nope"),
    ("suite @/list.yaml", "@/list.yaml"),
    ("suite @/binary.yaml", "@/binary.yaml"),
    ("suite @/scalar.yaml", "@/scalar.yaml"),
    ("suite @/nothing.yaml", "@/nothing.yaml"),
    ("demo metod=x", "unknown key 'metod'"),
    ("demo --workers x", "--workers: invalid int value"),
    ("figure", "the following arguments are required: name"),
    ("figure ttc_figure9", "unknown figure 'ttc_figure9'"),
    ("figure ttc_figure1 metod=x", "takes no settings"),
    ("figure dem_figure3 --runs @/nothing", "@/nothing"),
    ("bench speed", "unknown bench 'speed'"),
    ("completion tcsh", "invalid choice: 'tcsh'"),
    ("completion", "the following arguments are required"),
    ("bench loss --threads 0", "--threads: expected at least 1, got 0"),
    ("bench loss --seconds 0", "--seconds: expected more than 0"),
    ("bench loss --seconds x", "--seconds: invalid float value"),
    ("bench loss --device tpu", "invalid choice: 'tpu'"),
    ("bench loss --json @/nothing/x.json", "no folder @/nothing"),
    ("bench loss --json @/folder.yaml", "--json: @/folder.yaml is not a file"),
    ("bench loss --json @/pipe", "--json: @/pipe is not a file"),
    ("check", "the following arguments are required: what"),
    ("check cpu", "invalid choice: 'cpu'"),
    ("check gpu --seconds 0", "expected --seconds above 0"),
    ("check gpu --workers -1", "--workers of at least 0"),
    ("check gpu --part nope", "invalid choice: 'nope'"),
    ("new", "the following arguments are required"),
    ("new thing x", "invalid choice: 'thing'"),
    ("new loss", "the following arguments are required: NAME"),
    ("new loss ../x", "../x"),
    ("new loss 1x", "1x"),
    ("check loss", "the following arguments are required: NAME"),
    ("check loss nope", "unknown loss 'nope'"),
    ("kit", "the following arguments are required"),
    ("kit @/good", "@/good is not empty"),
    ("kit @/file.txt", "@/file.txt"),
    ("kit @/kit --python x", "--python: expected a version such as 3.12"),
    ("kit @/kit --have @/nothing", "@/nothing"),
    ("kit @/kit --data @/nothing", "--data: no @/nothing"),
    ("kit @/kit --extra nope", "nope"),
]

UNTRAINED = "model=torchvision model.arch=squeezenet1_1 model.weights=null model.num_classes=2"
DOMAINS = f"run {UNTRAINED} data=image_folder data.root=@/domains"

FILES: list[Row] = [  # files that are damaged or of another kind; the task is built
    ("run model=cifar_resnet20 model.weights=@/nothing.pth", "no file @/nothing.pth"),
    ("run model=cifar_resnet20 model.weights=@/folder.yaml", "no file @/folder.yaml"),
    ("run model=cifar_resnet20 model.weights=@/binary", "@/binary is no PyTorch checkpoint"),
    ("run model=cifar_resnet20 model.weights=@/empty.yaml", "@/empty.yaml is no PyTorch checkpoint"),
    ("run model=cifar_resnet20 model.weights=@/cut.pth", "@/cut.pth is no PyTorch checkpoint"),
    ("run model=cifar_resnet20 model.weights=@/code.pth", "@/code.pth is no PyTorch checkpoint"),
    ("run model=cifar_resnet20 model.weights=@/list.pth", "@/list.pth holds no state dict"),
    ("run model=cifar_resnet20 model.weights=@/numbers.pth", "@/numbers.pth holds no state dict"),
    ("run model=cifar_resnet20 model.weights=@/other.pth", "@/other.pth holds no CIFAR ResNet"),
    ("run model=cifar_resnet20 model.weights=@/bad.safetensors", "@/bad.safetensors is no safetensors file"),
    ("run model=cifar_resnet20 model.weights=@/cut.safetensors", "@/cut.safetensors is no safetensors file"),
    ("run model=wrn28_10 model.weights=@/other.pth", "@/other.pth holds no WRN-28-10"),
    ("run task=segmentation model=deeplabv2_small +model.weights=@/binary", "@/binary is no PyTorch checkpoint"),
    ("run task=segmentation model=deeplabv2_resnet18 model.weights=@/other.pth", "@/other.pth does not fit"),
    ("run task=segmentation model=deeplabv2_resnet18 model.weights=@/nothing.pth", "no file @/nothing.pth"),
    ("run task=segmentation model=mmseg_config model.config_file=@/file.txt", "@/file.txt"),
    ("run task=segmentation model=mmseg_config model.config_file=@/binary.yaml", "@/binary.yaml"),
    ("run task=segmentation model=mmseg_config model.config_file=@/list.yaml", "@/list.yaml"),
    ("run task=segmentation data=camvid data.root=@/runs_empty", "camvid"),
    ("run task=segmentation data=camvid data.root=@/file.txt", "@/file.txt"),
    ("run task=prompt method=tpt_coop method.context.file=@/nothing.pth", "@/nothing.pth"),
    ("run task=prompt method=tpt_coop method.context.file=@/binary", "@/binary is no PyTorch file"),
    ("run task=prompt method=tpt_coop method.context.file=@/cut.pth", "@/cut.pth is no PyTorch file"),
    ("run task=prompt method=tpt_coop method.context.file=@/other.pth", "expected a tensor ctx (n, D)"),
    ("run task=prompt method=tpt_coop method.context.file=@/pipe", "@/pipe is not a regular file"),
    ("run data=cifar10c data.root=@/runs_empty", "@/runs_empty"),
    ("run data=cifar10c data.root=@/file.txt", "@/file.txt"),
    ("run data=cifar10c data.root=@/c_damaged", "@/c_damaged"),
    ("run data=cifar10c_generated data.source=@/runs_empty", "@/runs_empty"),
    ("run data=cifar10c_generated data.source=@/file.txt", "@/file.txt"),
    ("run data=cifar10c_generated data.source=@/bad.tar.gz", "@/bad.tar.gz"),
    ("run data=image_folder data.root=@/runs_empty model=digits_convnet", "no transform for photographs"),
    ("run data=image_folder data.root=@/file.txt model=digits_convnet", "@/file.txt"),
    ("run task=semi data=folders data.images.root=@/nothing", "@/nothing"),
    ("run task=semi data=folders data.images.root=@/runs_empty", "@/runs_empty"),
    ("run task=semi data=folders data.images.root=@/file.txt", "@/file.txt"),
    ("run task=semi data=folders data.images.root=@/bad.tar.gz", "@/bad.tar.gz"),
    ("run task=semi data=cifar10 data.images.root=@/runs_empty", "@/runs_empty"),
    ("run task=semi data=stl10 data.images.root=@/runs_empty", "@/runs_empty"),
    ("run task=semi data=eurosat data.images.root=@/file.txt", "@/file.txt"),
    ("run task=semi data=tissuemnist data.images.root=@/file.txt", "@/file.txt"),
    ("run task=prompt data=image_folder data.root=@/runs_empty", "@/runs_empty"),
    ("run task=prompt data=image_folder data.root=@/nothing", "@/nothing"),
    # pictures
    (
        "run task=semi data=folders data.images.root=@/cut_pictures",
        "cut_pictures: a/1.jpg cannot be read as an image: Truncated",
    ),
    ("run task=semi data=folders data.images.root=@/avif_pictures", "@/avif_pictures: found images of 0 classes"),
    (
        "run task=semi data=folders data.images.root=@/avif_inside",
        "avif_inside: a/1.png cannot be read as an image: cannot identify image file",
    ),
    ("run data=cifar10c_generated data.source=@/cut_pictures", "cut_pictures"),
    (f"run data=image_folder data.root=@/avif_pictures {UNTRAINED}", "no images in @/avif_pictures"),
    # several domains
    (f"{DOMAINS} data.domains=[one,none]", "no folder @/domains/none"),
    (f"{DOMAINS} data.domains=[one,empty]", "@/domains/empty"),
    (f"{DOMAINS} data.domains=[one,hollow]", "no images in @/domains/hollow"),
    (f"{DOMAINS} data.domains=[one,others]", "@/domains/others has other class folders than the first domain: b, c"),
    (f"{DOMAINS} data.domains=[one,small] data.num_images=4", "@/domains/small"),
    (f"{DOMAINS} data.domains=[one,mean]", "a domain cannot be named 'mean'"),
    (f"{DOMAINS} data.domains=[one,one]", "each domain once"),
    (f"{DOMAINS} data.domains=one", "expected a list"),
    (f"{DOMAINS} data.domains=[]", "expected a list of domains"),
    # what waits for ever, and what has no end
    ("run model=cifar_resnet20 model.weights=@/pipe", "@/pipe"),
    ("run model=cifar_resnet20 model.weights=/dev/zero", "/dev/zero"),
    ("run data=cifar10c data.root=@/c_pipes", "@/c_pipes"),
    ("run data=cifar10c_generated data.source=@/pipe", "@/pipe"),
    ("run task=semi data=folders data.images.root=@/pipe", "@/pipe"),
    ("run task=semi data=semi_aves data.images.root=@/aves_pipe", "@/aves_pipe"),
    ("run task=semi data=semi_aves data.images.root=@/aves_binary", "l_train_val.txt is no text in UTF-8"),
    ("run task=semi data=semi_aves data.images.root=@/aves_odd", "expected lines of a path and the number of a class"),
    ("run task=semi data=tissuemnist data.images.root=@/pipe", "@/pipe"),
    ("run task=prompt data=image_folder data.root=@/domains/one data.class_names=@/pipe", "@/pipe"),
    ("run task=prompt data=image_folder data.root=@/domains/one data.class_names=@/binary", "no text in UTF-8"),
    ("run task=prompt data=image_folder data.root=@/domains/one data.class_names=@/file.txt", "expected each folder"),
    ("sweep @/pipe", "@/pipe"),
    ("sweep /dev/zero", "/dev/zero"),
    ("suite @/pipe.yaml", "@/pipe.yaml"),
    ("report @/pipe.csv --out @/out", "@/pipe.csv"),
    ("report @/pipe.jsonl.gz --out @/out", "@/pipe.jsonl.gz"),
    ("report @/good --out @/out --readme @/pipe", "@/pipe"),
    ("export @/pipe.jsonl.gz --out @/x.jsonl.gz", "@/pipe.jsonl.gz"),
    ("compare @/pipe.csv @/good", "@/pipe.csv"),
    ("kit @/kit --have @/pipe", "@/pipe"),
    ("evaluate @/pipe", "@/pipe"),
    ("run --config-dir @/conf_pipe loss=mine", "mine"),
    ("run --config-dir @/conf_list loss=mine", "mine"),
    ("run --config-dir @/conf_scalar loss=mine", "mine"),
    ("run --config-dir @/conf_binary loss=mine", "mine"),
    ("run --config-dir @/conf_tab loss=mine", "not valid YAML"),
    ("run --config-dir @/conf_bare loss=mine", "loss"),
    ("run --config-dir @/conf_module loss=mine", "no_such_module"),
    ("run --config-dir @/conf_same loss=em", "is the name of a file of dembench too"),
]


PICTURES: list[Row] = [  # what only the run meets, which is therefore begun
    (f"run data=image_folder data.root=@/cut_pictures {UNTRAINED} method=norm", "a/1.jpg cannot be read as an image"),
    (f"run data=image_folder data.root=@/avif_inside {UNTRAINED} method=norm", "a/1.png cannot be read as an image"),
]

ABSENT = "no home folder to keep caches in; set DEMBENCH_CACHE to a folder"
CACHES: list[tuple[str, str | None, str]] = [  # words, $DEMBENCH_CACHE (None: none, and no home), what is said
    ("run data=digits method=norm", None, ABSENT),
    ("run task=prompt method=zero_shot", None, ABSENT),
    ("run task=semi data=folders data.images.root=@/domains/one", None, ABSENT),
    ("run data=cifar10c_generated data.source=@/domains/one", None, ABSENT),
    ("run data=digits method=norm", "@/file.txt", "the cache folder @/file.txt/models cannot be written"),
    ("run data=digits method=norm", "/proc/nothing", "the cache folder /proc/nothing/models cannot be written"),
    ("run data=cifar10c_generated data.source=@/domains/one", "@/file.txt", "the cache folder @/file.txt"),
    ("run task=prompt method=zero_shot", "@/file.txt", "the cache folder @/file.txt/"),
    (
        "run task=semi data=folders data.images.root=@/few.tar",
        "@/file.txt",
        "the cache folder @/file.txt cannot be written",
    ),
]


def numbers() -> Iterator[Row]:
    """For every number of every task's own configuration a value outside its range."""
    for task in ("tta", "prompt", "semi", "longtail", "segmentation", "minigrid"):
        cfg = compose({"task": task}, complete=False)
        for group in ("method", "loss", "model", "data", "protocol"):
            node = OmegaConf.to_container(cfg[group]) if cfg.get(group) else None
            for key, value in ranges.numbers(node, group):
                wanted = ranges.range_of(key)
                bad = next((v for v in (wanted.least - 1, wanted.least, wanted.most + 1) if v not in wanted), None)
                if bad is not None and abs(bad) != float("inf") and not isinstance(value, list):
                    bad = int(bad) if bad == int(bad) else bad
                    yield f"run task={task} {key}={bad}", f"{key}: expected {wanted}, got"


def make_things(folder: Path) -> None:
    """Damaged and strange files, and a few right ones."""

    def text(name: str, content: str | bytes) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    noise = np.random.default_rng(0).integers(0, 256, 4000, dtype=np.uint8).tobytes()
    for name in ("binary", "binary.yaml", "binary.jsonl.gz", "binary.csv", "bad.tar.gz", "bad.safetensors"):
        text(name, noise)
    text("file.txt", "a text\n")
    text("bad.csv", "a,b\n1,2\n")
    text("cut.jsonl.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03abc")
    for name in ("folder.yaml", "runs_empty"):
        (folder / name).mkdir()
    for name, content in {
        "scalar": "3\n",
        "list": "- a\n- b\n",
        "empty": "",
        "tab": "grids:\n\t- {}\n",
        "other_key": "grid: []\n",
        "base_list": "base: [1]\ngrids: [{}]\n",
        "grid_map": "grids: {seed: 1}\n",
        "no_runs": "grids: []\n",
        "no_values": "grids: [{seed: []}]\n",
        "paper": "grids: [{}]\npaper: {data: digits}\n",
        "wrong_method": "grids: [{method: tnet}]\n",
        "wrong_number": "grids: [{method: tent, method.lr: [1e-3, -1.0]}]\n",
    }.items():
        text(f"{name}.yaml", content)
    for name, content in {
        "list": "- a\n",
        "scalar": "3\n",
        "binary": noise,
        "tab": "a:\n\t- b\n",
        "bare": "# About: x\nalpha: 1\n",
        "module": "# About: x\n_target_: no_such_module.Loss\n",
    }.items():
        text(f"conf_{name}/loss/mine.yaml", content)
    text("conf_same/loss/em.yaml", "# About: x\n_target_: dembench.core.EM\n")
    torch.save({"a.weight": torch.ones(2)}, folder / "other.pth")
    torch.save([1, 2], folder / "list.pth")
    torch.save({"a": 1}, folder / "numbers.pth")
    torch.save(compile, folder / "code.pth")
    whole = (folder / "other.pth").read_bytes()
    text("cut.pth", whole[: len(whole) // 2])
    text("cut.safetensors", b'\x40\x00\x00\x00\x00\x00\x00\x00{"a":')
    for name in ("labels", "gaussian_noise"):
        text(f"c_damaged/{name}.npy", noise[:100])
    (folder / "good" / "0123456789ab").mkdir(parents=True)
    text("good/0123456789ab/result.json", json.dumps(_record()))
    _make_pictures(folder)
    for name in ("pipe", "pipe.yaml", "pipe.csv", "pipe.jsonl.gz"):
        os.mkfifo(folder / name)
    for name in (
        "c_pipes/labels.npy",
        "c_pipes/gaussian_noise.npy",
        "aves_pipe/l_train_val.txt",
        "conf_pipe/loss/mine.yaml",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(folder / name)
    text("aves_binary/l_train_val.txt", noise)
    text("aves_odd/l_train_val.txt", "images/a.jpg zero\n")


def _make_pictures(folder: Path) -> None:
    """Class folders of small pictures: whole, cut off, of a format that is not read, and as domains of a stream."""
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)

    def picture(name: str, share: float = 1.0, kind: str = "JPEG") -> None:
        path, buffer = folder / name, io.BytesIO()
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(buffer, kind)
        path.write_bytes(buffer.getvalue()[: int(share * len(buffer.getvalue()))])

    for group in ("a", "b"):
        for number in range(3):
            picture(f"cut_pictures/{group}/{number}.jpg", 0.5 if (group, number) == ("a", 1) else 1.0)
            picture(f"avif_inside/{group}/{number}.png", kind="PNG")
            picture(f"domains/one/{group}/{number}.jpg")
            picture(f"domains/mean/{group}/{number}.jpg")
        picture(f"domains/small/{group}/0.jpg")
        (folder / "domains" / "hollow" / group).mkdir(parents=True)
        (folder / "avif_pictures" / group).mkdir(parents=True)
    for group in ("a", "c"):
        picture(f"domains/others/{group}/0.jpg")
    (folder / "domains" / "empty").mkdir()
    with tarfile.open(folder / "few.tar", "w") as archive:
        archive.add(folder / "domains" / "one", ".")
    avif = bytes.fromhex("0000001c667479706176696600000000617669666d6966316d696166") + pixels.tobytes()  # its head
    for name in ("avif_pictures/a/1.avif", "avif_inside/a/1.png"):
        (folder / name).write_bytes(avif)


def _record() -> dict[str, object]:
    names = {"task": "tta", "method": "tent", "loss": "em", "model": "m", "data": "d", "protocol": "p"}
    row = {"slice": "mean", "metric": "error", "value": 0.5, "unit": "fraction", "n": 10}
    return {
        **names,
        **{"schema": 1, "id": "0123456789ab", "seed": 0, "status": "ok", "flags": [], "notes": [], "rows": [row]},
        **{"histograms": {}, "cost": {"wall_seconds": 1.0, "cpu_seconds": 1.0}, "labels": {}, "fingerprints": {}},
        **{"config": {"choices": names, "seed": 0}, "environment": {}, "command": "dembench run", **names},
        **{"started": "2024-01-01T00:00:00+00:00", "finished": "2024-01-01T00:00:01+00:00"},
    }
