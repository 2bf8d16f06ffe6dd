"""The one trainer of all LoRA methods: the product's adapters, loop, heads and merge, and any Rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edge_pslora.compare.method import EVERY, Among, Setup
from edge_pslora.compare.rule import ModelInputs, Round, Rule, Step
from edge_pslora.compare.scoring import head_scores
from edge_pslora.config import AdaptConfig, HeadConfig, HeadKind, StabilityConfig
from edge_pslora.tasks import TASKS
from edge_pslora.training.features import extract_features
from edge_pslora.training.head import Head, extend_labels
from edge_pslora.training.head_session import HeadSession, begin_head
from edge_pslora.training.inject import Adapter, injected, new_adapters
from edge_pslora.training.loop import LoopHooks, train
from edge_pslora.training.memory import BaseWeights, first_memory
from edge_pslora.training.merging import target_weights
from edge_pslora.training.plan import plain_plan
from edge_pslora.training.session import SessionData
from edge_pslora.training.session_loss import answered_loss, session_sampling
from edge_pslora.training.targets import adapted_targets

NO_LOSS = StabilityConfig(weight=0.0)


def with_head_kind(config: AdaptConfig, kind: HeadKind) -> AdaptConfig:
    """The budget with a head as published (all rows trained, nothing protected) or the product's."""
    head = replace(config.head, kind=kind, protect=False)
    stability = replace(config.stability, weight=0.0)
    return replace(config, head=head, stability=stability, merge="none")


class LoraLearner:
    """One LoRA method: `rule` decides penalty and merge, `kind` is the head.

    linear: the rows of all labels so far are trained together, as published methods do. analytic: the
    product's, with transport. held: with the product's hold on features, and the labels that compete
    there. Whole batches in float32; rate schedule, clipping, AdamW and the order
    of batches are those of the product's loop.
    """

    def __init__(
        self, setup: Setup, rule: Rule, kind: HeadKind = "linear", *, held: bool = False
    ) -> None:
        self.held = held
        self.model = setup.model
        self.rule = rule
        self.config = with_head_kind(setup.config, kind)
        self.base = base_weights(setup.model.backbone.model)
        self.targets = adapted_targets(setup.model.backbone.model, self.config)
        self.head = first_head(setup, self.config)
        self.sessions = 0
        self.trained = 0

    def learn(self, data: SessionData) -> None:
        """One session; afterwards the model has the weights and the head to deploy."""
        self.sessions += 1
        config, backbone = self.config, self.model.backbone
        task = TASKS[self.head.task_type]
        known = len(self.head.labels)
        head = extend_labels(self.head, tuple(sorted(task.labels_in(data.targets))))
        wanted = task.encode(data.targets, head.labels)
        generator = seeded_generator(config.train.seed, self.sessions)
        adapters = new_adapters(self.targets, config.lora.rank, config.lora.scaling, generator)
        in_session = begin_head(
            self.model,
            self.head,
            head,
            wanted,
            config,
            lambda stage: extract_features(backbone, data.inputs, config.train.batch_size),
            generator,
        )
        weights = target_weights(backbone.model, self.targets, self.base)
        past = weights.past()
        answer = _answers(self.model.backbone, in_session, config.head, len(data.targets))
        round = Round(
            self.sessions,
            self.model,
            task,
            data,
            wanted,
            head.labels,
            known,
            adapters,
            {t.name: weights.parameters[t.weight_name] for t in self.targets},
            self.base,
            past,
            in_session.parameters,
            in_session.logits,
            answer,
            lambda logits, targets, inputs: task.loss(logits, targets, inputs, head.target_scale),
            weights.set_to,
            config,
            generator,
        )
        extra = {f"head.{name}": parameter for name, parameter in in_session.parameters.items()}
        for parameter in extra.values():
            parameter.requires_grad_(True)

        answered = answered_loss(in_session, task.loss, wanted, config.stability.features)

        def compute_loss(inputs: ModelInputs, batch: npt.NDArray[np.int64]) -> torch.Tensor:
            samples = torch.from_numpy(batch)
            features = backbone(**inputs)
            logits = in_session.logits(features, samples)
            if self.held:
                loss = answered(features, logits, samples, inputs, head.target_scale)
            else:
                loss = round.task_loss(logits, wanted[samples], inputs)
            step = Step(inputs, samples, features, logits, wanted[samples], loss)
            added = self.rule.loss(round, step)
            return loss if added is None else loss + added

        first = True

        def on_step(samples: int, note: str) -> None:
            nonlocal first
            if not first:  # the loop also tells where it starts
                self.rule.after_step(round)
            first = False

        with injected(backbone.model, adapters):
            self.rule.begin(round)
            train(
                compute_loss,
                data.inputs,
                adapters,
                extra,
                {},
                NO_LOSS,
                config.train,
                self.sessions,
                LoopHooks(on_step),
                None,
                session_sampling(task, data.inputs, wanted, config, plain_plan(config)),
            )
            self.trained = _trained([*_parameters(adapters.values()), *extra.values()])
            merged = self.rule.end(round)
        for parameter in extra.values():
            parameter.requires_grad_(False)
        weights.set_to(merged)
        self.head = in_session.finish()

    def score(self, data: SessionData, among: Among = EVERY) -> tuple[float, ...]:
        return head_scores(self.model.backbone, self.head, data, among)

    @property
    def kept_bytes(self) -> int:
        return self.rule.kept_bytes + head_bytes(self.head)


def head_bytes(head: Head) -> int:
    """What a head keeps for later sessions beyond its weight and bias: an analytic one's statistics."""
    kept = head.statistics
    if kept is None:
        return 0
    return sum(t.numel() * t.element_size() for t in (kept.gram, kept.moment, kept.squares))


def base_weights(model: nn.Module) -> BaseWeights:
    """W0 of every parameter, copied."""
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    return lambda name: kept[name]


def seeded_generator(seed: int, session: int) -> torch.Generator:
    """As a session of the product draws its adapters."""
    return torch.Generator().manual_seed(seed * 1_000_003 + session)


def first_head(setup: Setup, config: AdaptConfig) -> Head:
    """The head before the first session, the base's own or an empty one."""
    return first_memory(setup.model, (), config, setup.task_type).head


def _answers(
    backbone: nn.Module, in_session: HeadSession, config: HeadConfig, count: int
) -> Callable[[ModelInputs], tuple[torch.Tensor, torch.Tensor]]:
    """Of an analytic head the mean of its cross-fitted heads: a foreign sample was seen by none."""
    # only an analytic head has folds: neither has one trained by SGD, nor a model that answers by itself
    folds = max(1, min(config.folds, count)) if in_session.unseen is not None else 1

    def answer(inputs: ModelInputs) -> tuple[torch.Tensor, torch.Tensor]:
        features = backbone(**inputs)
        each = [in_session.logits(features, torch.full((len(features),), k)) for k in range(folds)]
        return features, each[0] if folds == 1 else torch.stack(each).mean(0)

    return answer


def _parameters(adapters: Iterable[Adapter]) -> list[nn.Parameter]:
    return [p for adapter in adapters for p in (adapter.A, adapter.B)]


def _trained(parameters: Sequence[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters if p.requires_grad)
