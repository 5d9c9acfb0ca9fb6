"""A shared encoder with one Hugging Face head per task."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from road_ds.data.batch import Batch
from road_ds.data.masking import Masking
from road_ds.data.packing import Packing
from road_ds.models.attention import ATTENTION, unpack_output
from road_ds.models.generator import Generator, generator_model, shown
from road_ds.models.states import NOTHING, States, Wanted, observed
from road_ds.tasks.base import Task
from road_ds.tasks.outputs import Outputs


class Replay(nn.Module):
    """Stands where a head's model expects its encoder, and gives back what the shared encoder computed."""

    def __init__(self):
        super().__init__()
        self.encoded: Any = None

    def forward(self, *args, **kwargs):
        return self.encoded


class MultiTaskModel(nn.Module):
    """A shared encoder and one head per task (ROaD, section 2.1).

    The heads are Hugging Face's own, run inside their own model class, so an exported folder computes the same
    logits. Those classes hold the shared encoder's stand-in and stay outside the module tree; encoder and head
    modules are inside it, each once.
    """

    def __init__(
        self,
        encoder: PreTrainedModel,
        shells: Mapping[str, PreTrainedModel],
        tasks: Mapping[str, Task],
        types: bool,
        generators: Mapping[str, Generator] | None = None,
    ):
        """generators: of the heads whose rows one changes before the encoder reads them."""
        super().__init__()
        self.encoder = encoder
        self.generators = nn.ModuleDict({_key(name): generator for name, generator in (generators or {}).items()})
        self.heads = nn.ModuleDict()
        self.tasks, self.uses_token_types = dict(tasks), types
        self._shells = dict(shells)  # a plain dict: not part of the module tree
        # Packed rows are padded again where the layers end, so that a pooler behind them sees rows.
        for stack in self.stacks():
            getattr(stack, "encoder", stack).register_forward_hook(unpack_output, with_kwargs=True)
        for name, shell in shells.items():
            setattr(shell, shell.base_model_prefix, Replay())
            modules = {n: m for n, m in shell.named_children() if n != shell.base_model_prefix}
            self.heads[_key(name)] = nn.ModuleDict(modules)
        self.comparison: Any = None

    def stacks(self) -> list[PreTrainedModel]:
        """Everything with layers: the encoder, and the generators' own."""
        return [self.encoder, *(generator.electra for generator in self.generators.values())]  # type: ignore[list-item]

    def compare(self, comparison: nn.Module) -> None:
        """Adds a comparison of layers with a teacher's; its weights are trained with the rest, never exported."""
        self.comparison = comparison
        if self.comparison.own.scores:
            self.encoder.set_attn_implementation("eager")  # the one that computes them where they can be seen

    def forward(
        self, batch: Batch | tuple[Batch, ...], head: str | tuple[str, ...], teachers: States | None = None, step: int = 0
    ) -> Any:  # fmt: skip
        """The Outputs of a batch under a head, logits [rows, classes]; in training with the term between layers.

        teachers: the states of the batch's teachers that are compared; step: the run's, from 0. Of several packed batches, which
        the encoder reads as one sequence, each under its own head: a list, in training, where neither generators nor states are.

        In training every other head runs on one row of zeros with weight 0: a head without a gradient in some
        micro-batch keeps an old one under ZeRO 3, and differs between ranks in what is reduced under ZeRO 2.
        """
        if isinstance(batch, tuple):
            assert isinstance(head, tuple)
            return with_nothing(*self._under_heads(list(zip(batch, head, self.encode_together(batch), strict=True))))
        assert isinstance(head, str)
        batch, touched = self._generated(batch, head)
        encoded, states = self.encode(batch, NOTHING if teachers is None else self.comparison.own)
        if not self.training:
            return self.tasks[head].outputs(self._head(head, encoded, batch.attention_mask), batch)
        outputs, more = self._under_heads([(batch, head, encoded)])
        touched += more
        layers = None
        if teachers is not None:
            layers = self.comparison(states, teachers, batch.attention_mask, step)
        elif self.comparison is not None and self.comparison.trained:  # a data set without a teacher leaves it idle too
            touched.append(self.comparison.idle(encoded.last_hidden_state))
        (found,) = with_nothing(outputs, touched)
        return replace(found, layers=layers)

    def _under_heads(self, read: list[tuple[Batch, str, Any]]) -> tuple[list[Outputs], list[torch.Tensor]]:
        """The outputs of batches under their heads, and what the heads of none of them give for a row of zeros.

        read: each batch with its head and what the encoder computed of it.
        """
        batch, _, encoded = read[0]
        # Zeros, not another data set's row: what overflows there in half precision would make the gradient NaN.
        first = type(encoded)(**{k: 0.0 * v[:1] for k, v in encoded.items() if torch.is_tensor(v)})
        found: dict[int, Any] = {}
        touched: list[torch.Tensor] = []
        # Always in one order: ZeRO 3 fetches weights ahead only while the modules follow each other as before.
        for name in self._shells:
            mine = [at for at, (_, head, _) in enumerate(read) if head == name]
            for at in mine:
                found[at] = self._head(name, read[at][2], read[at][0].attention_mask)
            if not mine:
                touched += self._head(name, first, batch.attention_mask[:1]).values()
        return [self.tasks[head].outputs(found[at], batch) for at, (batch, head, _) in enumerate(read)], touched

    def _generated(self, batch: Batch, head: str) -> tuple[Batch, list[torch.Tensor]]:
        """The batch as its head's generator changes it, if it has one, and in training a value of each other generator."""
        touched: list[torch.Tensor] = []
        embeddings: Any = self.encoder.embeddings
        for name, generator in self.generators.items():
            if name == _key(head) and batch.masking is not None:
                tokens, where = self._inputs(replace(batch, input_ids=shown(batch)))
                batch = generator(embeddings(**tokens), batch, **where)
            elif self.training:
                first = replace(batch, input_ids=batch.input_ids[:1, :1], masking=Masking.idle(batch.input_ids.device))
                touched.append(generator(0.0 * embeddings(input_ids=first.input_ids), first).generated.loss)
        return batch, touched

    def encode(self, batch: Batch, wanted: Wanted = NOTHING) -> tuple[Any, States]:
        """What the encoder computes of a batch, last_hidden_state [features, tokens, hidden], and the wanted states."""
        tokens, where = self._inputs(batch)
        added = batch.added
        if added is not None:
            words = self.words(tokens.pop("input_ids"))
            tokens["inputs_embeds"] = words + (batch.packing.pack(added) if batch.packing else added).to(words.dtype)
        return observed(self.encoder, {**tokens, **where}, wanted, batch.packing)

    def encode_together(self, batches: tuple[Batch, ...]) -> list[Any]:
        """What the encoder computes of each of several packed batches, in one pass over one sequence."""
        inputs = [self._inputs(batch)[0] for batch in batches]
        tokens = {name: torch.cat([own[name] for own in inputs], dim=1) for name in inputs[0]}
        packings = [batch.packing for batch in batches if batch.packing is not None]
        assert len(packings) == len(batches)
        packing = reduce(Packing.joined, packings)
        encoded = self.encoder(**tokens, packing=packing)
        rows = [len(batch.input_ids) for batch in batches]
        parts = {name: value.split(rows) for name, value in encoded.items() if torch.is_tensor(value)}
        each = [type(encoded)(**{name: values[at] for name, values in parts.items()}) for at in range(len(rows))]
        for own, batch in zip(each, batches, strict=True):
            own["last_hidden_state"] = own["last_hidden_state"][:, : batch.input_ids.shape[1]]  # others may be wider
        return each

    def _inputs(self, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the embeddings read of a batch, and what the layers do."""
        tokens = {"input_ids": batch.input_ids}
        if self.uses_token_types:
            tokens["token_type_ids"] = batch.token_type_ids
        packing = batch.packing
        if packing is None:
            return tokens, {"attention_mask": None if batch.full else batch.attention_mask}
        tokens = {name: packing.pack(tensor) for name, tensor in tokens.items()}
        # RoBERTa and its kin count positions from behind the padding id.
        first = getattr(self.encoder.embeddings, "padding_idx", -1) + 1
        return {**tokens, "position_ids": packing.positions + first}, {"packing": packing}

    @property
    def encoder_prefix(self) -> str:
        """How the encoder's weights are called inside the heads' models: "electra", "bert"."""
        return next(iter(self._shells.values())).base_model_prefix

    @property
    def words(self) -> nn.Embedding:
        """The encoder's word embeddings."""
        return self.encoder.get_input_embeddings()  # type: ignore[return-value]

    def use_packing(self) -> str:
        """Makes the encoder ready for packed batches; why it cannot run them, or "" when it can.

        Two rows are computed both ways, which speaks for every architecture, known here or not.
        """
        if self.comparison is not None and self.comparison.own.scores:
            return "attention scores are compared with a teacher's, which packed rows have none of"
        if not getattr(self.encoder, "_supports_attention_backend", False):
            return f"the attention of {self.encoder.config.model_type} is its own and knows no rows inside a sequence"
        lengths, training = np.array([5, 3]), self.training
        ids = torch.arange(10).view(2, 5) + (self.encoder.config.pad_token_id or 0) + 1  # none is padding
        real = torch.arange(5) < torch.tensor(lengths)[:, None]
        padded = Batch("", np.zeros(2), ids, real.long(), torch.zeros_like(ids), torch.tensor(lengths), torch.zeros(2))
        before = self.encoder.config._attn_implementation
        self.eval()
        with torch.no_grad():
            expected = self.encode(padded)[0].last_hidden_state[real]
            for stack in self.stacks():
                stack.set_attn_implementation(ATTENTION)
            try:
                found = self.encode(replace(padded, packing=Packing.of(lengths, 5)))[0].last_hidden_state[real]
                same = torch.allclose(found, expected, rtol=1e-3, atol=1e-4)
            except (TypeError, RuntimeError, IndexError):  # no position ids, say
                same = False
        self.train(training)
        if same:
            return ""
        for stack in self.stacks():
            stack.set_attn_implementation(before)
        return f"{self.encoder.config.model_type} computes something else when rows are packed"

    def _head(self, name: str, encoded: Any, attention_mask: torch.Tensor) -> Any:
        shell = self._shells[name]
        replay = getattr(shell, shell.base_model_prefix)
        replay.encoded = encoded
        try:
            # the ids are not looked at: the encoder has been
            return shell(**self.tasks[name].inputs({"input_ids": attention_mask, "attention_mask": attention_mask}))
        finally:
            replay.encoded = None

    def train(self, mode: bool = True):
        """As in torch; the heads' shells follow, since their own mode decides on dropout written as a function."""
        super().train(mode)
        for shell in self._shells.values():
            shell.training = mode
        return self

    def head_model(self, name: str, state: Mapping[str, torch.Tensor]) -> PreTrainedModel:
        """One head with the encoder, as the Hugging Face model it came from; `state` is this model's whole state."""
        shell = self._shells[name]
        prefix = shell.base_model_prefix
        own = {f"{prefix}.{k.removeprefix('encoder.')}": v for k, v in state.items() if k.startswith("encoder.")}
        head = f"heads.{_key(name)}."
        own |= {k.removeprefix(head): v for k, v in state.items() if k.startswith(head)}
        whole = type(shell)(copy.deepcopy(shell.config))
        missing, unexpected = whole.load_state_dict(own, strict=False)
        missing = [key for key in missing if not key.endswith("position_ids")]
        # An encoder shared with a classification head may carry a pooler that a span head does not have.
        if missing or any("pooler" not in key for key in unexpected):
            raise RuntimeError(f"head {name}: missing {missing}, unexpected {unexpected}")
        dtype = next(iter(own.values())).dtype
        whole.to(dtype)  # type: ignore[arg-type]
        return whole.eval()

    def generator_model(self, name: str, state: Mapping[str, torch.Tensor]) -> PreTrainedModel | None:
        """The generator of a head as the Hugging Face model it came from; None where the head has none."""
        if _key(name) not in self.generators:
            return None
        own, encoder = _below(f"generators.{_key(name)}.", state), _below("encoder.", state)
        return generator_model(self.generators[_key(name)].config, own, encoder)


def with_nothing(outputs: list[Outputs], touched: list[torch.Tensor]) -> list[Outputs]:
    """The same outputs, the first of them plus 0 times all that was touched, so that it has a gradient."""
    if not touched:
        return outputs
    every = torch.cat([value.flatten() for value in touched]).float()  # at once: few launches, however many heads
    nothing = (0.0 * every.nan_to_num(0.0, 0.0, 0.0)).mean()  # a sum of large ones would be inf
    first = outputs[0]
    logits, loss = first.logits + nothing.to(first.logits.dtype), first.loss
    return [replace(first, logits=logits, loss=None if loss is None else loss + nothing), *outputs[1:]]


def _key(name: str) -> str:
    """A head's name where torch names modules, which have no dots."""
    return name.replace(".", "/")


def _below(prefix: str, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The entries of a state whose names begin so, without that."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def parameter_count(model: nn.Module) -> int:
    """Trainable parameters of a model, also where ZeRO 3 has partitioned them."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad)
