"""A plain PyTorch loop on our batches."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch
from presets import DROPOUT, LONGEST
from torch.nn import functional as F

from providers.case import CLIP, DECAY, DTYPES, LR, Rows, Work, as_torch_comes, fresh, wait
from road_ds.data.batch import Batch
from road_ds.data.batches import Padding, assemble
from road_ds.engine.speed import fit_cpu
from road_ds.models.attention import ATTENTION, plan_no_shapes
from road_ds.tasks.registry import heads


class Bare:
    """A plain loop on our batches, which lie ready, over transformers' layers as they come or over the layers of ours.

    With ours it is the least that our loop can take: the same layers, and no engine.
    """

    def __init__(self, rows: Rows, own: bool):
        self.rows = rows
        device = rows.ranks.device
        tasks = heads(rows.config)
        built = fresh(rows, DROPOUT)
        state = built.state_dict()
        with device:
            self.models = {name: built.head_model(name, state).train() for name in tasks}
        encoder = self.models["mrc"].base_model
        for model in self.models.values():
            setattr(model, model.base_model_prefix, encoder)
        self.own = own
        if own:
            encoder.set_attn_implementation(ATTENTION)
            plan_no_shapes()
        dtype = DTYPES[rows.precision]
        every = torch.nn.ModuleList(self.models.values()).to(device, dtype)
        if own and device.type == "cpu":
            fit_cpu(encoder)
        self.parameters: list[torch.Tensor] = list(every.parameters())
        self.half = dtype != torch.float32
        self.masters = [p.detach().float() for p in self.parameters] if self.half else self.parameters
        self.optimizer = torch.optim.AdamW(self.masters, lr=LR, weight_decay=DECAY, fused=True)
        self.padding = Padding("grouped", rows.tokenizer.pad_token_id, dict.fromkeys(rows.sources, LONGEST))

    def turn(self, steps: range) -> Work:
        with nullcontext() if self.own else as_torch_comes():
            return self.steps(steps)

    def steps(self, steps: range) -> Work:
        rows, device = self.rows, self.rows.ranks.device
        plan = assemble(rows.passes, rows.sources, self.padding, rows.ranks, rows.preset.micro, steps)
        ready = [[batch.to(device) for batch in batches] for _, batches in plan]
        wait(device)
        began = rows.clock()
        for batches in ready:
            for batch in batches:
                (self.loss(batch) / len(batches)).backward()
            self.update()
        wait(device)
        seconds = rows.clock() - began
        return Work(seconds, sum(batch.input_ids.numel() for batches in ready for batch in batches))

    def loss(self, batch: Batch) -> torch.Tensor:
        task = self.rows.config.head_of(batch.dataset)
        mask = None if batch.full else batch.attention_mask
        output = self.models[task](input_ids=batch.input_ids, attention_mask=mask, token_type_ids=batch.token_type_ids)
        if task != "mrc":
            return F.cross_entropy(output.logits.float(), batch.labels)
        start, end = batch.labels.view(-1, 2).T
        return (
            F.cross_entropy(output.start_logits.float(), start) + F.cross_entropy(output.end_logits.float(), end)
        ) / 2

    def update(self) -> None:
        if self.half:
            for master, parameter in zip(self.masters, self.parameters, strict=True):
                master.grad = None if parameter.grad is None else parameter.grad.float()
        torch.nn.utils.clip_grad_norm_(self.masters, CLIP)
        self.optimizer.step()
        if self.half:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, self.masters)
        for parameter in self.parameters:
            parameter.grad = None

    def split(self, step: int) -> dict[str, float]:
        device = self.rows.ranks.device
        plan = assemble(
            self.rows.passes,
            self.rows.sources,
            self.padding,
            self.rows.ranks,
            self.rows.preset.micro,
            range(step, step + 1),
        )
        ((_, batches),) = plan
        marks = []
        for batch in [batch.to(device) for batch in batches]:
            marks.append(self.mark(device))
            loss = self.loss(batch) / len(batches)
            marks.append(self.mark(device))
            loss.backward()
            marks.append(self.mark(device))
        self.update()
        end = self.mark(device)
        parts = np.array(marks).reshape(-1, 3)
        return {
            "forward": 1e3 * float((parts[:, 1] - parts[:, 0]).sum()),
            "backward": 1e3 * float((parts[:, 2] - parts[:, 1]).sum()),
            "step": 1e3 * (end - marks[-1]),
            "data": 0.0,
        }

    def mark(self, device: torch.device) -> float:
        wait(device)
        return self.rows.clock()
