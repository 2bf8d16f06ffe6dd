"""Sequential full fine-tuning: the targets' weights themselves are trained, no adapter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from edge_pslora.compare.method import EVERY, Among, Setup
from edge_pslora.compare.rule import ModelInputs
from edge_pslora.compare.scoring import head_scores
from edge_pslora.compare.trainer import (
    NO_LOSS,
    first_head,
    head_bytes,
    seeded_generator,
    with_head_kind,
)
from edge_pslora.config import HeadKind
from edge_pslora.tasks import TASKS
from edge_pslora.training.features import extract_features
from edge_pslora.training.head import extend_labels
from edge_pslora.training.head_session import begin_head
from edge_pslora.training.loop import LoopHooks, train
from edge_pslora.training.plan import plain_plan
from edge_pslora.training.session import SessionData
from edge_pslora.training.session_loss import session_sampling
from edge_pslora.training.targets import adapted_targets

# Hu et al. 2021 (arXiv 2106.09685), appendix D, train LoRA at about ten times the rate of all weights
RATE_SHARE = 0.1


class FineTuneLearner:
    """The layers that LoRA methods adapt are trained whole, at a tenth of the adapters' rate; a linear
    head at the rate that it has in all methods."""

    def __init__(self, setup: Setup, kind: HeadKind = "linear") -> None:
        config = with_head_kind(setup.config, kind)
        train = config.train
        self.config = replace(
            config,
            train=replace(
                train,
                learning_rate=train.rate * RATE_SHARE,
                head_rate=train.head_rate / RATE_SHARE,
            ),
        )
        self.model = setup.model
        targets = adapted_targets(setup.model.backbone.model, self.config)
        self.names = {target.weight_name for target in targets}
        self.head = first_head(setup, self.config)
        self.sessions = 0
        self.trained = 0

    def learn(self, data: SessionData) -> None:
        self.sessions += 1
        config, backbone = self.config, self.model.backbone
        task = TASKS[self.head.task_type]
        head = extend_labels(self.head, tuple(sorted(task.labels_in(data.targets))))
        wanted = task.encode(data.targets, head.labels)
        in_session = begin_head(
            self.model,
            self.head,
            head,
            wanted,
            config,
            lambda stage: extract_features(backbone, data.inputs, config.train.batch_size),
            seeded_generator(config.train.seed, self.sessions),
        )
        trained = {n: p for n, p in backbone.model.named_parameters() if n in self.names}
        trained |= {f"head.{name}": p for name, p in in_session.parameters.items()}
        for parameter in trained.values():
            parameter.requires_grad_(True)

        def compute_loss(inputs: ModelInputs, batch: npt.NDArray[np.int64]) -> torch.Tensor:
            samples = torch.from_numpy(batch)
            logits = in_session.logits(backbone(**inputs), samples)
            return task.loss(logits, wanted[samples], inputs, head.target_scale)

        train(
            compute_loss,
            data.inputs,
            {},
            trained,
            {},
            NO_LOSS,
            config.train,
            self.sessions,
            LoopHooks(),
            None,
            session_sampling(task, data.inputs, wanted, config, plain_plan(config)),
        )
        self.trained = sum(p.numel() for p in trained.values())
        for parameter in trained.values():
            parameter.requires_grad_(False)
            parameter.grad = None
        self.head = in_session.finish()

    def score(self, data: SessionData, among: Among = EVERY) -> tuple[float, ...]:
        return head_scores(self.model.backbone, self.head, data, among)

    @property
    def kept_bytes(self) -> int:
        return head_bytes(self.head)
