# SPDX-License-Identifier: Apache-2.0
"""The thread of an active action node that asks the policy; the control loop never waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import torch

from omnistream_ros.action.chunk import Chunk
from omnistream_ros.action.controller import Controller, Ticket
from omnistream_ros.action.policy import Observation, Policy, PolicyError
from omnistream_ros.action.policy_facts import FeatureInput
from omnistream_ros.action.safety import Drop

_REPEAT_S = 5.0
Embed = Callable[[str], np.ndarray]


class PolicyWorker:
    """Lives from activate to deactivate.

    Args:
        embed: sentence to vector; for policies that read one.
        now_ns: the clock that stamps the inputs.
        on_chunk: told of every answer, with the instruction, when the policy was asked, and why
            the answer is not carried out.
        on_fault: told of an exception that is no PolicyError; the thread has then ended.
        warn: told what the reader of a log wants to know.
    """

    def __init__(
        self,
        policy: Policy,
        controller: Controller,
        *,
        embed: Embed | None,
        now_ns: Callable[[], int],
        on_chunk: Callable[[Chunk, str, int, Drop | None], None],
        on_fault: Callable[[BaseException], None],
        warn: Callable[[str], None],
    ) -> None:
        self._policy = policy
        self._controller = controller
        self._embed = embed
        self._buffers: dict[FeatureInput, np.ndarray] = {}
        self._embedded: tuple[str, np.ndarray | None] = ("", None)
        self._now_ns = now_ns
        self._on_chunk, self._on_fault, self._warn = on_chunk, on_fault, warn
        self._warned_s = -_REPEAT_S
        self._news = threading.Event()
        self._closing = False
        self.chunks = 0
        self.inference_s = 0.0
        self._thread = threading.Thread(target=self._run, name="policy", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """Something came that a policy might answer to. Any thread."""
        self._news.set()

    def close(self) -> None:
        """End the thread; a call that the policy is in is broken off."""
        self._closing = True
        self._news.set()
        while self._thread.is_alive():
            # Again and again: the thread may have been on its way into the policy.
            self._policy.cancel()
            self._thread.join(0.05)

    def _run(self) -> None:
        try:
            while not self._closing:
                self._news.wait()
                self._news.clear()
                now_ns = self._now_ns()
                ticket = None if self._closing else self._controller.begin(now_ns)
                if ticket is not None:
                    self._ask(ticket, now_ns)
        except Exception as error:  # the node logs it and goes to error processing
            if not self._closing:
                self._on_fault(error)

    def _ask(self, ticket: Ticket, now_ns: int) -> None:
        began_s = time.monotonic()
        try:
            if ticket.reset:
                self._policy.reset()
            data = self._policy.act(self._observation(ticket))
        except PolicyError as error:
            if not self._closing:
                self._controller.policy_failed(str(error))
                self._tell(f"the policy gave no actions: {error}")
            return
        self.inference_s = time.monotonic() - began_s
        self.chunks += 1
        chunk = Chunk(
            chunk_id=self.chunks,
            origins=ticket.origins,
            stamp_ns=ticket.stamp_ns,
            anchor=ticket.anchor,
            generation=ticket.generation,
            data=np.asarray(data),
            inference_s=self.inference_s,
            age_s=(now_ns - ticket.stamp_ns) / 1e9,
        )
        refused = self._controller.offer(chunk, self._now_ns())
        if refused is not None:
            self._tell(f"an answer of the policy is not carried out: {refused.value}")
        self._on_chunk(chunk, ticket.instruction, now_ns, refused)
        # A frame may have come meanwhile, and its news was heard before the question was put.
        self._news.set()

    def _observation(self, ticket: Ticket) -> Observation:
        needs = self._policy.needs
        features: dict[tuple[str, str], np.ndarray] = {}
        for feature in needs.features:
            tensor = ticket.payloads[feature.stream][feature.stream, feature.key]
            features[feature.stream, feature.key] = self._float32(feature, tensor)
        return Observation(
            features=features,
            images={name: ticket.payloads[name] for name in needs.images},
            joints=ticket.joints,
            instruction=ticket.instruction,
            embedding=self._embedding(ticket.instruction) if needs.embedding else None,
            consumed=ticket.anchor,
        )

    def _float32(self, feature: FeatureInput, tensor: np.ndarray) -> np.ndarray:
        """The tensor as policies read it, in memory that serves every frame.

        Torch converts: numpy takes 5 to 9 ms for the float16 patches of a ViT-L frame, torch 0.2.
        """
        buffer = self._buffers.get(feature)
        if buffer is None or buffer.shape != tensor.shape:
            buffer = self._buffers[feature] = np.empty(tensor.shape, np.float32)
        if tensor.flags.writeable and min(tensor.strides, default=1) > 0:
            torch.from_numpy(buffer).copy_(torch.from_numpy(tensor))
        else:
            np.copyto(buffer, tensor)
        return buffer

    def _embedding(self, text: str) -> np.ndarray:
        """Computed once, when the instruction changes."""
        known, vector = self._embedded
        if vector is None or known != text:
            assert self._embed is not None
            vector = self._embed(text)
            self._embedded = (text, vector)
        return vector

    def _tell(self, words: str) -> None:
        now = time.monotonic()
        if now - self._warned_s > _REPEAT_S:
            self._warned_s = now
            self._warn(words)
