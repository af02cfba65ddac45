"""A torch dataset over one or several sources of records, with mixing weights and an account of media that fail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count

import numpy as np
import torch
from PIL.Image import Image
from torch.utils.data import Dataset

from tpo_plugin.data.confine import check_media
from tpo_plugin.data.media import ImageOptions, VideoClip, VideoOptions, read_frame, read_image, read_video, video_file
from tpo_plugin.data.packed import Packed
from tpo_plugin.data.records import Record, Records
from tpo_plugin.errors import MediaError, RecordError, TPOError

_UNSEEN, _GOOD, _BAD = 0, 1, 2
_JUDGED_FROM = 200
"""The share of bad records is taken of at least this many records (or of all, where there are fewer)."""


@dataclass(frozen=True)
class Sample:
    """A record with its media read."""

    record: Record
    images: tuple[Image, ...] = ()
    videos: tuple[VideoClip, ...] = ()

    def picture(self, time_s: float | None = None) -> Image:
        """The first image; or what the first video shows at a second, by default in its middle. Raises `MediaError`."""
        if self.videos:
            return read_frame(self.record.videos[0], self.videos[0].duration_s / 2 if time_s is None else time_s)
        if not self.images:
            raise MediaError(f"{self.record.place}: has neither an image nor a video")
        return self.images[0]


@dataclass(frozen=True)
class SkippedRecord:
    """A record that could not be used."""

    id: str
    """Its own; "?" where the record is what cannot be read."""
    place: str
    reason: str


def read_sample(record: Record, video: VideoOptions | None = None, image: ImageOptions | None = None) -> Sample:
    """Reads the media of a record, by default as the options' own defaults say.

    Raises `MediaError`, also where a confined record leads out of its folder.
    """
    check_media(record)
    if any(isinstance(medium, Packed) for medium in record.videos):
        record = replace(record, videos=tuple(map(video_file, record.videos)))
    return Sample(
        record,
        tuple(read_image(path, image) for path in record.images),
        tuple(read_video(path, video) for path in record.videos),
    )


class RecordDataset(Dataset[Sample]):
    """Samples of several sources.

    Without `weights` an epoch holds every record once, source after source (a sampler shuffles). With weights an epoch
    holds `num_samples` samples (by default as many as there are records), the sources in proportion and mixed; each
    source goes through its records in a new order every time round. What stands at an index depends on `seed` and epoch
    alone. A wrapped trainer calls `set_epoch`; in a loop of your own, call it where an epoch begins.

    A record whose media cannot be read, or that breaks the format in a source too large to be checked when it was
    opened, is replaced by another of the same source, which again depends on seed, epoch and index alone. `skipped` and
    `report` tell, in the main process, what all its workers met. A `MediaError` stops the run when more than
    `max_bad_share` of the records read so far are bad.
    """

    def __init__(
        self,
        sources: Sequence[Records],
        *,
        weights: Sequence[float] | None = None,
        num_samples: int | None = None,
        seed: int = 0,
        video: VideoOptions | None = None,
        image: ImageOptions | None = None,
        max_bad_share: float = 0.05,
    ) -> None:
        if not sources:
            raise TPOError("RecordDataset got no source of records")
        if weights is not None and (len(weights) != len(sources) or min(weights) < 0 or not sum(weights) > 0):
            raise TPOError(f"weights are {list(weights)}; expected {len(sources)} numbers of at least 0, one above it")
        if weights is None and num_samples is not None:
            raise TPOError("num_samples needs weights: without them an epoch holds every record once")
        self.sources, self.seed = list(sources), seed
        self.video, self.image, self.max_bad_share = video, image, max_bad_share
        self._starts = np.cumsum([0, *(len(source) for source in sources)])
        self._mix = None if weights is None else _Mix(self._starts, weights, num_samples or int(self._starts[-1]), seed)
        # In shared memory: a worker that persists over epochs sees the epoch, the main process sees the states.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._states = torch.zeros(int(self._starts[-1]), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return int(self._starts[-1]) if self._mix is None else self._mix.num_samples

    @property
    def is_mixed(self) -> bool:
        """Whether it has weights, so that each epoch has other records."""
        return self._mix is not None

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, from 0, whose mix is served; without weights every epoch is the same."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        place = self._place(index)
        source = int(np.searchsorted(self._starts, place, side="right")) - 1
        rng: np.random.Generator | None = None
        for attempt in count(1):
            try:
                sample = self._read(place)
            except (MediaError, RecordError) as error:
                self._mark_bad(place, error)
                if attempt == 100:
                    name = self.sources[source].name
                    raise MediaError(f"100 records of {name} in a row cannot be read; last: {error}") from error
                rng = rng or np.random.default_rng([self.seed, int(self._epoch), index])
                place = int(rng.integers(self._starts[source], self._starts[source + 1]))
                continue
            self._states[place] = _GOOD
            return sample
        raise AssertionError("unreachable")

    def _read(self, place: int) -> Sample:
        records, index = self._find(place)
        return records.checked(read_sample(records[index], self.video, self.image))

    def _find(self, place: int) -> tuple[Records, int]:
        """The source of a record and its index there."""
        source = int(np.searchsorted(self._starts, place, side="right")) - 1
        return self.sources[source], place - int(self._starts[source])

    @property
    def skipped(self) -> list[SkippedRecord]:
        """The records that were skipped so far, by any worker. They are tried again for the reason."""
        return [self._skipped(place) for place in torch.nonzero(self._states == _BAD).flatten().tolist()]

    def _skipped(self, place: int) -> SkippedRecord:
        records, index = self._find(place)
        where = records.place(index)
        try:
            record = records[index]
        except RecordError as error:
            return SkippedRecord("?", where, str(error).removeprefix(f"{where}: "))
        try:
            records.checked(read_sample(record, self.video, self.image))
        except MediaError as error:
            return SkippedRecord(record.id, where, str(error))
        return SkippedRecord(record.id, where, "could not be read then, and can be now")

    @property
    def met(self) -> torch.Tensor:
        """What became of each record so far, uint8 [records], for `take_in` on another rank."""
        return self._states

    def take_in(self, met: Sequence[torch.Tensor]) -> None:
        """Adds to `skipped` and `report` what other ranks met."""
        self._states.copy_(torch.stack([self._states, *met]).amax(0))

    def report(self) -> str:
        """What was read and what was skipped, for the end of a run."""
        num_read = int((self._states != _UNSEEN).sum())
        skipped = self.skipped
        lines = [f"media: {num_read} records read, {len(skipped)} skipped because they cannot be read"]
        return "\n".join(lines + [f"  {s.place} (id {s.id}): {s.reason}" for s in skipped])

    @cached_property
    def _kinds(self) -> np.ndarray:
        """For each record of all sources 1 if it has images, plus 2 if it has videos. Reads every record once."""
        return np.array([self._kind(place) for place in range(int(self._starts[-1]))], dtype=np.uint8)

    def _kind(self, place: int) -> int:
        records, index = self._find(place)
        try:
            record = records[index]
        except RecordError:  # it is counted where it is to be served
            return 0
        return bool(record.images) + 2 * bool(record.videos)

    @property
    def num_media_kinds(self) -> int:
        """How many of the four (text alone, images, videos, both) there are."""
        return len(np.unique(self._kinds))

    def media_kinds(self) -> np.ndarray:
        """The kind of media at each index in this epoch: 1 for images, 2 for videos, 3 for both, 0 for text alone."""
        return self._kinds if self._mix is None else self._kinds[self._mix.places(int(self._epoch))]

    @property
    def lengths(self) -> Sequence[int]:
        """How long the sample at each index in this epoch is, for trainers that group by length, without its media.

        Characters of the conversation, behind which as many images and videos count most: those of a batch are alike
        in both. Reads every record once.
        """
        return _Lengths(self)

    @cached_property
    def _text_and_media(self) -> np.ndarray:
        """For each record of all sources its length as `lengths` has it."""
        records = (record for source in self.sources for record in source)
        sizes = [(len(r.images) + len(r.videos), sum(len(turn.text) for turn in r.turns)) for r in records]
        longest = 1 + max(characters for _, characters in sizes)
        return np.array([media * longest + characters for media, characters in sizes], dtype=np.int64)

    def _mark_bad(self, place: int, error: MediaError | RecordError) -> None:
        self._states[place] = _BAD
        num_bad = int((self._states == _BAD).sum())
        num_read = int((self._states != _UNSEEN).sum())
        judged = max(num_read, min(_JUDGED_FROM, len(self._states)))
        if num_bad > self.max_bad_share * judged:
            found = self._skipped(place)
            raise MediaError(
                f"{num_bad} of {num_read} records read so far cannot be read, more than the share of "
                f"{self.max_bad_share:g} that max_bad_share allows; last: {found.place} (id {found.id}): {found.reason}"
            ) from error

    def _place(self, index: int) -> int:
        """Of the sample at an index of this epoch, in the chain of all sources."""
        return index if self._mix is None else int(self._mix.places(int(self._epoch))[index])


class _Lengths(Sequence[int]):
    """The lengths of a dataset's samples, of whichever epoch it serves."""

    def __init__(self, dataset: RecordDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> int:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return int(self.dataset._text_and_media[self.dataset._place(index)])


class _Mix:
    """Which record stands where in an epoch: the sources, which begin at `starts`, in the proportion of `weights`."""

    def __init__(self, starts: np.ndarray, weights: Sequence[float], num_samples: int, seed: int) -> None:
        self.starts, self.weights, self.num_samples, self.seed = starts, np.array(weights, float), num_samples, seed
        self._newest: tuple[int, np.ndarray] | None = None
        """The epoch that was asked for last, and its places."""

    def places(self, epoch: int) -> np.ndarray:
        """Of each sample of an epoch, in the chain of all sources."""
        if self._newest is None or self._newest[0] != epoch:
            self._newest = epoch, self._mixed(epoch)
        return self._newest[1]

    def _mixed(self, epoch: int) -> np.ndarray:
        counts, drawn = self._counts(epoch + 1), []
        for source, (begin, end) in enumerate(zip(counts[:-1].sum(0), counts.sum(0), strict=True)):
            first, size = int(self.starts[source]), int(self.starts[source + 1] - self.starts[source])
            # The source's own stream goes on from epoch to epoch: a large one is not cut to the same beginning.
            rounds = range(begin // size, -(-end // size))
            orders = [np.random.default_rng([self.seed, source, r]).permutation(size) for r in rounds]
            stream = np.concatenate(orders) if orders else np.empty(0, dtype=np.int64)
            drawn.append(first + stream[begin - rounds.start * size : end - rounds.start * size])
        mixed = np.concatenate(drawn)
        return mixed[np.random.default_rng([self.seed, epoch]).permutation(self.num_samples)]

    def _counts(self, epochs: int) -> np.ndarray:
        """Samples of each source in each of the first epochs, [epochs, sources]: all together exactly `num_samples`,
        each within 1 of its proportion, which they keep over the epochs. So a source of less than a sample comes in
        some."""
        bounds = np.cumsum([0, *self.weights]) / self.weights.sum() * self.num_samples
        bounds[-1] = self.num_samples
        # Where a bound is rounded up differs from epoch to epoch, as evenly as the golden ratio spreads it.
        phases = (0.5 + (5**0.5 - 1) / 2 * np.arange(epochs)) % 1
        counts: np.ndarray = np.diff(np.floor(bounds + phases[:, None]).astype(int), axis=1)
        return counts
