"""The ``trt`` backend: engines that ``tfx build-engine`` put into a bundle, on a GPU.

One implementation over the API that ``tensorrt`` and ``tensorrt_rtx`` share, without torch. An engine is run
only where it was built for, by the version that built it, from the graph that the bundle holds now; and only
after it has given the answer to its self-test.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.backends import BackendOptions
from tfswa.runtime.backends.chain import Link, all_ends, meet, outer_ends
from tfswa.runtime.backends.cuda import Device
from tfswa.runtime.backends.engines import (
    answer_likeness_db,
    answer_of,
    library_logger,
    probe,
    quiet_noise,
    samples,
)
from tfswa.runtime.backends.trt_choice import (
    Built,
    built_engines,
    bundle_with_engines,
    fitting,
    fitting_transforms,
    staged,
)
from tfswa.runtime.backends.trt_execution import SLOTS, Execution, failure
from tfswa.runtime.errors import BackendUnavailable, BundleError, DeviceMemoryError, UsageError, reason
from tfswa.runtime.gates import gate_for
from tfswa.runtime.metrics import likeness_db
from tfswa.runtime.model.spec import DECODE, ENCODE, Shapes

if TYPE_CHECKING:
    from tfswa.runtime.model.opening import Model

logger = logging.getLogger(__name__)

MEGABYTE = 1 << 20
Tensors = Mapping[str, NDArray[np.float32]]


class TrtSession:
    """Runs an engine of a bundle, and those of the transform if it holds some that fit; see ``Session``.

    Attributes:
        transform: what computes the transform here, in words; empty where that is left to the host.

    Raises:
        UsageError: no such precision.
        BackendUnavailable: a library, the GPU, its memory, or an engine that fits all of them is missing.
        BundleError: an engine is damaged, is not the spec's, or fails its self-test.
    """

    name = "trt"
    precisions = ("fp32", "fp16", "bf16", "int8", "mixed")
    device_default = "cuda"
    artifact: tuple[str, str]
    description: str
    versions: Mapping[str, str]

    def __init__(self, model: Model, options: BackendOptions):
        self._precision = options.precision or "fp32"
        if self._precision not in self.precisions:
            raise UsageError(
                f"backend trt has no precision {self._precision!r}: choose {', '.join(self.precisions)}"
            )
        index = _device_index(options.device)
        built = built_engines(model, self._precision)
        self._device = device = Device(index)
        found = fitting(model, self._precision, built, device)
        self._model, self._library = model, found.library
        self.artifact, self.transform = (found.name, found.sha256), ""
        self.versions = {found.library.__name__: str(found.library.__version__)}
        self._built, self._stages = [found], list[Link]()  # of the network; then of the whole chain
        self._alone: Execution | None = None  # the network
        self._whole: Execution | None = None  # between the transforms
        try:
            answer = self._answer(found)
            network, self._smallest, self._batch = self._loaded(found, model.spec.takes, model.spec.gives)
            self._stages = [network]
            self._alone = self._open(self._stages, self._built)
            self._self_test(found, self._alone, answer, probe(model.spec), self._precision)
            transforms = fitting_transforms(model, found, device)
            if transforms:
                self._surround(*transforms)
        except BaseException:
            self.close()
            raise
        self.description = (
            f"{found.library.__name__} {found.library.__version__}, {self._precision} on {device.name} "
            f"({device.label}), batch up to {self._batch}"
        )

    def infer(self, given: Tensors) -> dict[str, NDArray[np.float32]]:
        """What the network takes to what it gives, of any B items; see ``Session``."""
        if self._alone is None:
            self._alone = self._opened(*self._network)
        return self._alone.infer(given)

    def infer_samples(self, given: Tensors) -> dict[str, NDArray[np.float32]]:
        """The same with the transform before it and its inverse behind it; see ``Session``."""
        assert self.transform, "the host transforms"
        if self._whole is None:
            self._whole = self._opened(self._stages, self._built)
        return self._whole.infer(given)

    def close(self) -> None:
        """Release the engines and their memory."""
        self._release()
        self._stages, self._built = [], []

    def _release(self) -> None:
        for execution in (self._whole, self._alone):
            if execution is not None:
                execution.close()
        self._whole = self._alone = None

    @property
    def _network(self) -> tuple[list[Link], list[Built]]:
        middle = len(self._stages) // 2
        return self._stages[middle : middle + 1], self._built[middle : middle + 1]

    def _surround(self, encode: Built, decode: Built) -> None:
        """Put the transforms around the network, each tried alone and then all together."""
        ends = self._model.spec.transforms
        built, batch = [encode, *self._built, decode], self._batch
        try:
            before, *_ = self._loaded(encode, *ends[ENCODE])
            after, *_ = self._loaded(decode, *ends[DECODE])
            stages = [before, *self._stages, after]
            if not meet(stages):
                logger.info("%s does not take float32: the CPU transforms", self.artifact[0])
                return
            takes, gives = outer_ends(stages)
            item = quiet_noise({name: end.shape for name, end in takes.items()})
            found: dict[str, NDArray[np.float32]] = dict(item)
            found |= self._tried(before, encode, found)
            found |= self.infer({name: found[name] for name in self._stages[0].takes})
            self._release()  # or more would be held at once than all need together
            found |= self._tried(after, decode, found)
            self._whole = self._open(stages, built)
            together = self._whole.infer(self._asked(item))
        except BackendUnavailable as error:
            if not isinstance(error.__cause__ or error, DeviceMemoryError):
                raise
            logger.warning("the CPU transforms: %s", str(error))  # the error itself would keep the memory
            self._release()
            self._batch = batch
            return
        self._stages, self._built = stages, built
        self._compare({name: self._asked({name: found[name]})[name] for name in gives}, together)
        # By what runs, not by the graphs: certificates hold for these engines, and signatures vouch for them.
        self.versions = {**self.versions, ENCODE: encode.sha256, DECODE: decode.sha256}
        self.transform = f"{ENCODE} and {DECODE} on {self._device.label}"

    def _tried(self, stage: Link, built: Built, found: Tensors) -> dict[str, NDArray[np.float32]]:
        """What an engine of a transform makes of an item, once it has passed its self-test alone.

        In its smallest batch, which takes the least memory: all together are asked in the others.
        """
        batch, self._batch = self._batch, self._smallest
        try:
            with closing(self._opened([stage], [built])) as execution:
                self._self_test(built, execution, self._answer(built), quiet_noise(_shapes(stage)), "fp32")
                return execution.infer({name: found[name] for name in stage.takes})
        finally:
            self._batch = batch

    def _opened(self, stages: Sequence[Link], built: Sequence[Built]) -> Execution:
        """Engines ready to run beside what is open, or in its place where there is no memory for both."""
        self._device.activate()
        try:
            return Execution(self._device, self._library, stages, self._smallest, self._batch)
        except DeviceMemoryError as error:
            logger.info("no memory for the network alone and with the transform: %s", str(error))
        self._release()
        return self._open(stages, built)

    def _open(self, stages: Sequence[Link], built: Sequence[Built]) -> Execution:
        """Engines ready to run, for the largest batch that there is memory for."""
        self._device.activate()
        while True:
            try:
                return Execution(self._device, self._library, stages, self._smallest, self._batch)
            except DeviceMemoryError as error:
                if self._batch == self._smallest:
                    needed = sum(SLOTS * end.bytes(self._batch) for end in all_ends(stages).values())
                    needed += max(stage.engine.device_memory_size_v2 for stage in stages)
                    name = " with ".join(one.name for one in built)
                    raise self._full(name, needed, error) from error
                half = max(self._smallest, self._batch // 2)
                reason = str(error)  # the error itself would keep what could not be made in the log
                logger.warning(
                    "no memory for batch %d (%s): going on with batch %d", self._batch, reason, half
                )
                self._batch = half

    def _loaded(self, built: Built, takes: Shapes, gives: Shapes) -> tuple[Link, int, int]:
        """An engine and its ends, smallest and largest batch."""
        library = self._library
        log = library_logger(library)
        log.errors.clear()
        plan = self._model.file(built.name).read_bytes()
        engine = library.Runtime(log).deserialize_cuda_engine(plan)
        if engine is None:
            error = failure(library, f"cannot load {built.name}")
            if isinstance(error, DeviceMemoryError):
                raise self._full(built.name, len(plan), error) from error
            raise BundleError(f"{error}; rebuild it with `{built.command} --force`") from error
        return staged(built.name, library, engine, takes, gives)

    def _full(self, name: str, needed: int, error: Exception) -> BackendUnavailable:
        free, total = (size // MEGABYTE for size in self._device.memory())
        return BackendUnavailable(
            f"{name} needs about {-(-needed // MEGABYTE)} MB of GPU memory, {self._device.label} has "
            f"{free} of {total} MB free ({error}): end what else uses it, or use another --device"
        )

    def _answer(self, built: Built) -> NDArray[np.float32]:
        """What an engine must give in its self-test."""
        name = answer_of(built.name)
        if name not in bundle_with_engines(self._model).files:
            raise BackendUnavailable(
                f"{built.name} was built without an answer to its self-test, {name}: rebuild it with "
                f"`{built.command}`"
            )
        path = self._model.file(name)
        try:  # mapped: a header that declares more than the file holds allocates nothing
            answer: NDArray[np.float32] = np.array(np.load(path, mmap_mode="r"))
        except (OSError, ValueError, EOFError) as error:
            raise BundleError(
                f"{path} is no array ({reason(error)}): rebuild it with `{built.command} --force`"
            ) from error
        return answer

    def _asked(self, item: Tensors) -> dict[str, NDArray[np.float32]]:
        """An item one more time than the largest batch: both slots, the largest batch and the smallest."""
        return {name: np.repeat(one, self._batch + 1, axis=0) for name, one in item.items()}

    def _self_test(
        self, built: Built, execution: Execution, answer: NDArray[np.float32], item: Tensors, precision: str
    ) -> None:
        """Ask an engine what its bundle knows the answer to."""
        again = f"rebuild it with `{built.command} --force`"
        found = execution.infer(self._asked(item))
        if not all(np.isfinite(value).all() for value in found.values()):
            raise BundleError(f"{built.name} gives NaN or Inf in its self-test on this GPU: {again}")
        given = [
            {name: value[item] for name, value in found.items()}
            for item in range(len(next(iter(found.values()))))
        ]
        count = samples(given[0]).size
        if answer.shape != (count,):
            name = answer_of(built.name)
            raise BundleError(f"{name} has {answer.size} numbers, the engine gives {count}: {again}")
        gate_db = gate_for(precision).snr_db
        reached_db = min(answer_likeness_db(answer, one) for one in given)
        if reached_db < gate_db:
            raise BundleError(
                f"{built.name} reaches {reached_db:.1f} dB SNR in its self-test, {precision} "
                f"must reach {gate_db:g}: {again}"
            )

    def _compare(self, right: Tensors, found: Tensors) -> None:
        """See that the engines give together what they give one by one."""
        gate_db = gate_for(self._precision).snr_db
        reached_db = min(likeness_db(right[name], found[name]) for name in right)
        if not reached_db >= gate_db:
            names = ", ".join(one.name for one in self._built)
            raise BundleError(
                f"{names} give together {reached_db:.1f} dB SNR of what they give one by one, "
                f"{self._precision} must reach {gate_db:g}: rebuild them with `{self._network[1][0].command} "
                "--force`"
            )


def _device_index(device: str) -> int:
    kind, _, index = device.partition(":")
    if device == "cpu":
        raise BackendUnavailable("device cpu asked for, engines run on GPUs: use --device cuda")
    if kind != "cuda" or (":" in device and not index.isdecimal()):
        raise BackendUnavailable(f"unknown device {device!r}: engines run on cuda or cuda:N")
    return int(index or 0)


def _shapes(stage: Link) -> dict[str, tuple[int, ...]]:
    return {name: end.shape for name, end in stage.takes.items()}
