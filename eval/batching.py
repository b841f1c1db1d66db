"""Requests of many clients answered together: whoever asks while the policy is busy is in its next batch."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from core.policy import ActionChunk, Observation, Policy
from eval.wire import Request


@runtime_checkable
class BatchPolicy(Policy, Protocol):
    """A policy that holds many episodes at once, each in a session of its own."""

    def start(self, instruction: str, seed: int) -> Any:
        """A session: all that a policy remembers of an episode, at its beginning."""

    def act_many(self, observations: Sequence[Observation], sessions: Sequence[Any]) -> list[ActionChunk]:
        """The next chunk of each session; where it raises, no session has changed."""


class SinglePolicy:
    """A policy that remembers one episode, for one client at a time."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def start(self, instruction: str, seed: int) -> None:
        """Reset it."""
        self.policy.reset(instruction, seed)

    def act_many(self, observations: Sequence[Observation], sessions: Sequence[None]) -> list[ActionChunk]:
        """The chunks of its episode, one after the other."""
        return [self.policy.act(observation) for observation in observations]


@dataclass
class Episode:
    """What the server remembers of a client."""

    instruction: str | None = None
    """None: there is no episode."""
    seed: int = 0
    session: Any = None
    """The policy's own memory of it."""

    def begin(self, instruction: str, seed: int, session: Any) -> None:
        """Another episode than before."""
        self.instruction, self.seed, self.session = instruction, seed, session

    def forget(self) -> None:
        """There is no episode."""
        self.instruction, self.session = None, None


class Answer(NamedTuple):
    """What became of a request."""

    chunk: ActionChunk | None
    problem: BaseException | None
    """Why there is no chunk."""
    infer_ms: float
    """Time of the policy for the whole batch."""
    batch: int
    """Requests that were answered together."""


class _Asked(NamedTuple):
    request: Request
    episode: Episode
    answer: "asyncio.Future[Answer]"


class Batcher:
    """Asks the policy in a thread of its own, so that clients are heard while it thinks."""

    def __init__(self, policy: BatchPolicy | SinglePolicy, max_batch: int, gather_s: float) -> None:
        self.clients = 0
        """Of them it waits for, a moment, before it answers fewer."""
        self._policy, self._max_batch, self._gather_s = policy, max_batch, gather_s
        self._waiting: asyncio.Queue[_Asked] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy")

    async def ask(self, request: Request, episode: Episode) -> Answer:
        """The answer to a request of an episode, which has one at a time."""
        asked = _Asked(request, episode, asyncio.get_running_loop().create_future())
        self._waiting.put_nowait(asked)
        return await asked.answer

    async def run(self) -> None:
        """Answer until cancelled."""
        try:
            while True:
                batch = [await self._waiting.get()]
                await self._gather(batch)
                await self._answer([asked for asked in batch if not asked.answer.done()])
        finally:
            self._thread.shutdown(cancel_futures=True)

    async def _gather(self, batch: list[_Asked]) -> None:
        """Add who asks within a moment, which is over at once where nobody else could."""
        until = asyncio.get_running_loop().time() + self._gather_s
        while len(batch) < self._max_batch:
            if not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
                continue
            if len(batch) >= self.clients:
                return
            try:
                async with asyncio.timeout_at(until):
                    batch.append(await self._waiting.get())
            except TimeoutError:
                return

    async def _answer(self, batch: list[_Asked]) -> None:
        ready = []
        for asked in batch:
            problem = await self._begin(asked.request, asked.episode)
            if problem is None:
                ready.append(asked)
            else:
                asked.answer.set_result(Answer(None, problem, 0.0, 1))
        if ready and not await self._act(ready) and len(ready) > 1:
            # One bad observation must not fail the others.
            for asked in ready:
                await self._act([asked])

    async def _begin(self, request: Request, episode: Episode) -> BaseException | None:
        """Start an episode where the request asks for one; answers what went wrong."""
        instruction = episode.instruction if request.instruction is None else request.instruction
        seed = episode.seed if request.seed is None else request.seed
        if instruction is None:
            return ValueError("there is no instruction; the first request needs one, as `instruction` or `prompt`")
        if (instruction, seed) == (episode.instruction, episode.seed) and not request.reset:
            return None
        done = await self._in_thread(self._policy.start, instruction, seed)
        problem = done.exception()
        if problem is None:
            episode.begin(instruction, seed, done.result())
        else:
            episode.forget()
        return problem

    async def _act(self, batch: list[_Asked]) -> bool:
        """Ask the policy; False: it failed, and nobody was told because there are several."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        observations = [asked.request.observation for asked in batch]
        done = await self._in_thread(self._policy.act_many, observations, [asked.episode.session for asked in batch])
        problem, infer_ms = done.exception(), 1000 * (loop.time() - started)
        if problem is not None and len(batch) > 1:
            return False
        chunks = [None] if problem is not None else done.result()
        for asked, chunk in zip(batch, chunks, strict=True):
            if not asked.answer.done():
                asked.answer.set_result(Answer(chunk, problem, infer_ms, len(batch)))
        return problem is None

    async def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> "asyncio.Future[Any]":
        """The finished future of some work, whose result or exception is its own."""
        done = asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)
        await asyncio.wait([done])
        return done
